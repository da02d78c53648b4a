"""Metrics of classification; all are of the validation split unless said.

Those of one class an example are counted here: scikit-learn's, which are the same numbers, take
15 ms a rung, longer than the training of a small head between two. Sets of labels are its affair.
"""

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


# Of true and predicted labels; also of sets of them, as a matrix of 0 and 1.
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


Counts = NDArray[np.float64]


def _f1(counts: Counts) -> Counts:
    """Return the F1 score of each class; 0 for one that is in neither row nor column."""
    return _over(2 * counts.diagonal(), counts.sum(0) + counts.sum(1))


def _matthews(counts: Counts) -> float:
    """Return the correlation of true and predicted classes (Gorodkin 2004, eq. 8); 0 without."""
    n, true, found = counts.sum(), counts.sum(1), counts.sum(0)
    spread = (n * n - true @ true) * (n * n - found @ found)
    return float((n * counts.trace() - true @ found) / np.sqrt(spread)) if spread > 0 else 0.0


def _recall(counts: Counts) -> Counts:
    return _over(counts.diagonal(), counts.sum(1))


OF_COUNTS: dict[str, Callable[[Counts], float]] = {
    "accuracy": lambda counts: float(counts.trace() / counts.sum()),
    "balanced_accuracy": lambda counts: float(_recall(counts)[counts.sum(1) > 0].mean()),
    "f1_macro": lambda counts: float(_f1(counts).mean()),
    "f1_micro": lambda counts: float(counts.trace() / counts.sum()),
    "f1_weighted": lambda counts: float(np.average(_f1(counts), weights=counts.sum(1))),
    "precision_macro": lambda counts: float(_over(counts.diagonal(), counts.sum(0)).mean()),
    "recall_macro": lambda counts: float(_recall(counts).mean()),
    "matthews": _matthews,
}
"""The scores of one class an example, of the table of true (rows) and predicted classes."""


def compute(names: Iterable[str], logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return `ALWAYS` and the metrics ``names``.

    ``loss`` is the mean cross-entropy, without label smoothing; the rest is of the likeliest
    class. Macro means run over the classes that occur in targets or predictions.

    Args:
        names: keys of `OF_COUNTS`, or ``loss``.
        logits: [n, classes], finite, on any device.
        targets: [n], class indices.

    Raises:
        KeyError: for a name that is no metric.
    """
    logits, targets = logits.float().cpu(), targets.cpu()
    values = {"loss": float(functional.cross_entropy(logits, targets))}
    counts = _counts(targets.numpy(), logits.argmax(dim=1).numpy(), logits.shape[1])
    for name in dict.fromkeys((*ALWAYS, *names)):
        if name not in values:
            values[name] = OF_COUNTS[name](counts)
    return values


def _counts(true: Labels, predicted: Labels, classes: int) -> Counts:
    """Return how often each class was taken for each, without those that do not occur."""
    pairs = np.bincount(true * classes + predicted, minlength=classes * classes)
    table = pairs.reshape(classes, classes).astype(np.float64)
    occur = (table.sum(0) + table.sum(1)) > 0
    return table[np.ix_(occur, occur)]


def _over(part: Counts, whole: Counts) -> Counts:
    """Return ``part`` over ``whole``, 0 where that is 0: a class that is never predicted."""
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
