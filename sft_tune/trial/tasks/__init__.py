"""The registry of tasks: what each does with a model's outputs and an example's target."""

from __future__ import annotations

from sft_tune.spec.study import Task
from sft_tune.trial.tasks import classification
from sft_tune.trial.tasks.protocol import Outputs, TrialTask

__all__ = ["TASKS", "Outputs", "TrialTask", "task_of"]

TASKS: dict[Task, TrialTask] = {
    "image-classification": classification,
    "text-classification": classification,
}


def task_of(name: Task) -> TrialTask:
    """Return the task ``name``."""
    return TASKS[name]
