"""Which settings keep a frozen backbone's features from being computed once: said here alone."""

from __future__ import annotations

from typing import Any

from sft_tune.spec.rules import combinations
from sft_tune.spec.study import StudySpec
from sft_tune.spec.training import TrainingSpec

TASKS = (
    "image-classification",
    "text-classification",
    "image-regression",
    "text-regression",
    "audio-classification",
)

WITHOUT = {
    "augment": "none",
    "auto_augment": "none",
    "color_jitter": 0.0,
    "erasing": 0.0,
    "token_masking": 0.0,
    "mix": "none",
    "averaging": "none",
}
"""What settings must be: the others change an example each time, or the statistics of batch norm
(`averaging: swa` takes them anew)."""


def in_the_way(training: TrainingSpec) -> dict[str, Any]:
    """Return the settings of ``training`` that must be others for features, and what they are."""
    values = {name: getattr(training, name) for name in WITHOUT}
    return {name: value for name, value in values.items() if value != WITHOUT[name]}


def features_forgone(spec: StudySpec) -> dict[str, list[Any]]:
    """Return the settings that keep every trial of ``spec`` from features, and their values.

    It is empty where some trial has features, or could not have any: the backbone is trained in
    some, which may need the setting, or the study wants none kept.
    """
    if spec.task not in TASKS or not spec.resources.feature_cache:
        return {}
    cells = list(combinations(spec, ["freeze", *WITHOUT]))
    if any(cell["freeze"] != "backbone" for cell in cells):
        return {}
    return {
        name: list(dict.fromkeys(cell[name] for cell in cells))
        for name, wanted in WITHOUT.items()
        if all(cell[name] != wanted for cell in cells)
    }
