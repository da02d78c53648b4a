"""Faults of real, short fine-tunes: found where they were made, and none where none was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.fault_rules import find_faults
from sft_tune.spec.faults import Rung

Configure = Callable[..., TrialConfig]
ROOM = {"classes": [0, 1, 2, 3], "train_limit": 300, "validation_limit": 300}


def faults_of(runner: Any, config: TrialConfig) -> list[str]:
    outcome = runner.run(config, checkpoint_seconds=1e9)
    metric = config.objective.metric
    rungs = [Rung.of(evaluation.to_json(), metric) for evaluation in runner.evaluations]
    found = find_faults(
        rungs,
        maximize=metric != "loss",
        reason=outcome.reason,
        note=outcome.note,
    )
    return [fault.name for fault in found]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_sound_run_has_no_fault(runner: Any, digits: Configure, seed: int) -> None:
    training = {"epochs": 8, "learning_rate": 3e-3, "augment": "none"}
    config = digits(data=ROOM, training=training, objective={"rungs": 8}, seed=seed)
    assert faults_of(runner, config) == []


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"learning_rate": 1e-7, "epochs": 6}, "underfitting"),
        ({"learning_rate": 1e4, "epochs": 6, "optimizer": "sgd", "clip_norm": None}, "diverging"),
    ],
)
def test_a_fault_that_was_made_is_found(
    runner: Any, digits: Configure, training: dict[str, Any], expected: str
) -> None:
    config = digits(data=ROOM, training={**training, "augment": "none"}, objective={"rungs": 6})
    assert expected in faults_of(runner, config)


def test_few_labels_and_many_epochs_overfit(runner: Any, digits: Configure) -> None:
    data = {"classes": list(range(10)), "train_limit": 30, "validation_limit": 300}
    training = {"epochs": 60, "learning_rate": 1e-2, "augment": "none", "weight_decay": 0.0}
    config = digits(
        data=data,
        model={"dropout": 0.0},
        training={**training, "schedule": "constant"},
        objective={"rungs": 10},
    )
    assert "overfitting" in faults_of(runner, config)
