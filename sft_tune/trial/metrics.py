"""Metrics of classification, by scikit-learn; all are of the validation split unless said."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Labels = NDArray[np.int64]
ALWAYS = ("loss", "accuracy", "f1_macro")


def _averaged(function: str, average: str) -> Callable[[Any, Labels, Labels], float]:
    def score(library: Any, true: Labels, predicted: Labels) -> float:
        # A class that is never predicted has precision 0, without a warning.
        value = getattr(library, function)(true, predicted, average=average, zero_division=0)
        return float(value)

    return score


def _balanced_accuracy(library: Any, true: Labels, predicted: Labels) -> float:
    """Return the mean recall of the classes that occur in ``true``."""
    present = np.unique(true)
    return float(
        library.recall_score(true, predicted, labels=present, average="macro", zero_division=0)
    )


SCORES: dict[str, Callable[[Any, Labels, Labels], float]] = {
    "accuracy": lambda library, true, predicted: float(library.accuracy_score(true, predicted)),
    "balanced_accuracy": _balanced_accuracy,
    "f1_macro": _averaged("f1_score", "macro"),
    "f1_micro": _averaged("f1_score", "micro"),
    "f1_weighted": _averaged("f1_score", "weighted"),
    "precision_macro": _averaged("precision_score", "macro"),
    "recall_macro": _averaged("recall_score", "macro"),
    "matthews": lambda library, true, predicted: float(library.matthews_corrcoef(true, predicted)),
}


def compute(names: Iterable[str], logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return `ALWAYS` and the metrics ``names``.

    ``loss`` is the mean cross-entropy, without label smoothing; the rest is of the likeliest
    class. Macro means run over the classes that occur in targets or predictions.

    Args:
        names: keys of `SCORES`, or ``loss``.
        logits: [n, classes], finite, on any device.
        targets: [n], class indices.

    Raises:
        KeyError: for a name that is no metric.
    """
    # Two seconds of import, which a process that only builds a model need not spend.
    from sklearn import metrics as library

    logits, targets = logits.float().cpu(), targets.cpu()
    values = {"loss": float(functional.cross_entropy(logits, targets))}
    true, predicted = targets.numpy(), logits.argmax(dim=1).numpy()
    for name in dict.fromkeys((*ALWAYS, *names)):
        if name not in values:
            values[name] = SCORES[name](library, true, predicted)
    return values
