"""Faults of real, short fine-tunes: found where they were made, and none where none was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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


MISLABELLED = """
import numpy as np
from sklearn.datasets import load_digits

def load(split):
    if split == "test":
        return None
    images, labels = load_digits(return_X_y=True)
    pixels = np.repeat(images.reshape(-1, 8, 8, 1) * 15, 3, axis=3).astype("uint8")
    if split == "validation":
        return list(zip(pixels[:300], map(str, labels[:300])))
    draw = np.random.default_rng(0)
    wrong = np.where(draw.random(200) < 0.4, draw.integers(0, 10, 200), labels[300:500])
    return list(zip(pixels[300:500], map(str, wrong)))
"""


def test_learning_wrong_labels_by_heart_is_overfitting(
    new_runner: Callable[[str], Any], digits: Configure, tmp_path: Path
) -> None:
    (tmp_path / "mislabelled.py").write_text(MISLABELLED)
    data = {"source": f"python:{tmp_path}/mislabelled.py:load"}
    training = {"epochs": 40, "learning_rate": 3e-3, "augment": "none", "schedule": "constant"}
    found = [
        faults_of(
            new_runner(str(seed)),
            digits(
                data={**data, "classes": None, "train_limit": None, "validation_limit": None},
                model={"dropout": 0.0},
                training=training,
                objective={"rungs": 10},
                seed=seed,
            ),
        )
        for seed in range(1, 5)
    ]
    # Their losses jump, elsewhere than on another machine; one may hide it, not most.
    assert sum("overfitting" in faults for faults in found) >= 2
