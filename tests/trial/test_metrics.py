from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as library

from sft_tune.spec.tasks import TASKS, Task
from sft_tune.trial.metrics import ALWAYS, OF_COUNTS, SCORES, compute

# Three classes; one of each is right, and one of class 0 is taken for class 1.
TARGETS = torch.tensor([0, 0, 1, 2])
LOGITS = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 3]])


def test_metrics_have_their_known_values() -> None:
    values = compute([*SCORES, "loss"], LOGITS, TARGETS)
    wrong, right = math.log(2 + math.e**3), math.log(2 + math.e**3) - 3
    f1 = {0: 2 / 3, 1: 2 / 3, 2: 1.0}
    assert values == pytest.approx(
        {
            "loss": (3 * right + wrong) / 4,
            "accuracy": 0.75,
            "balanced_accuracy": (0.5 + 1 + 1) / 3,
            "f1_macro": sum(f1.values()) / 3,
            "f1_micro": 0.75,
            "f1_weighted": (2 * f1[0] + f1[1] + f1[2]) / 4,
            "precision_macro": (1 + 0.5 + 1) / 3,
            "recall_macro": (0.5 + 1 + 1) / 3,
            "matthews": (3 * 4 - 5) / math.sqrt((16 - 6) * (16 - 6)),
        },
        rel=1e-6,
    )


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_counted_scores_are_those_of_scikit_learn(classes: int) -> None:
    assert OF_COUNTS.keys() == SCORES.keys()
    draw = torch.Generator().manual_seed(classes)
    targets = torch.randint(classes, (40,), generator=draw)
    logits = torch.randn(40, classes, generator=draw)
    true, predicted = targets.numpy(), logits.argmax(dim=1).numpy()
    found = compute(list(SCORES), logits, targets)
    for name, score in SCORES.items():
        assert found[name] == pytest.approx(score(library, true, predicted), rel=1e-12), name


@pytest.mark.parametrize("task", ["image-classification", "text-classification"])
def test_every_metric_of_the_study_file_is_known(task: Task) -> None:
    assert set(TASKS[task].metrics) == {"loss", *SCORES}


def test_the_usual_metrics_come_without_asking() -> None:
    assert set(compute([], LOGITS, TARGETS)) == set(ALWAYS)
    assert set(compute(["matthews"], LOGITS, TARGETS)) == {*ALWAYS, "matthews"}


def test_classes_that_are_absent_or_never_predicted_give_numbers_and_no_warning() -> None:
    targets = torch.tensor([0, 0, 1])
    logits = torch.eye(4)[[2, 2, 2]]
    values = compute([*SCORES, "loss"], logits, targets)
    assert np.isfinite(list(values.values())).all()
    assert values["balanced_accuracy"] == 0.0
    assert compute(["balanced_accuracy"], torch.eye(4)[[0, 3, 1]], targets)[
        "balanced_accuracy"
    ] == pytest.approx(0.75)


def test_half_precision_logits_lose_nothing_more() -> None:
    assert compute([], LOGITS.bfloat16(), TARGETS) == pytest.approx(compute([], LOGITS, TARGETS))
