"""The registry of tasks: what each does with a model's outputs and an example's target."""

from __future__ import annotations

from sft_tune.spec.data import DataSpec
from sft_tune.spec.tasks import Task
from sft_tune.trial.tasks import (
    classification,
    detection,
    language,
    multi_label,
    regression,
    segmentation,
    tagging,
    translation,
)
from sft_tune.trial.tasks.protocol import Outputs, TrialTask

__all__ = ["TASKS", "Outputs", "TrialTask", "task_of"]

TASKS: dict[Task, TrialTask] = {
    "audio-classification": classification,
    "image-classification": classification,
    "text-classification": classification,
    "image-regression": regression,
    "text-regression": regression,
    "token-classification": tagging,
    "semantic-segmentation": segmentation,
    "object-detection": detection,
    "causal-lm": language,
    "seq2seq": translation,
}


def task_of(name: Task, data: DataSpec) -> TrialTask:
    """Return the task ``name`` for targets as ``data`` has them."""
    return multi_label if data.multi_label else TASKS[name]
