"""Regression: one number an example, standardized; squared, absolute or Huber's error."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, promote_types
from torch import float32 as single
from torch.nn import functional

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data import Batch, Prepared, Split
from sft_tune.trial.tasks.protocol import Outputs

Values = NDArray[np.float64]
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auto": lambda found, true: functional.mse_loss(found, true, reduction="sum"),
    "mse": lambda found, true: functional.mse_loss(found, true, reduction="sum"),
    "mae": lambda found, true: functional.l1_loss(found, true, reduction="sum"),
    "huber": lambda found, true: functional.huber_loss(found, true, reduction="sum"),
}
ALWAYS = ("loss", "rmse", "r2")


def weight(batch: Batch) -> int:
    """Return the number of examples."""
    return len(batch.targets)


def share_of_loss(outputs: Tensor, batch: Batch, total: int, training: TrainingSpec) -> Tensor:
    """Return the share of the mean error of outputs [b, 1], in deviations of the targets."""
    found = outputs.to(promote_types(outputs.dtype, single)).squeeze(1)
    return LOSSES[training.loss](found, batch.targets.to(found.dtype)) / total


def keep(outputs: Tensor, batch: Batch) -> Outputs:
    """Return the outputs [b, 1]."""
    return {"values": outputs.float()}


def metrics(names: Iterable[str], kept: Outputs, split: Split, data: Prepared) -> dict[str, float]:
    """Return `ALWAYS` and ``names``, in the units of the targets.

    ``loss`` is the mean squared error in deviations of the training targets, whatever
    ``training.loss`` says, so that trials can be compared. Rank correlation of values that are
    all the same is 0.
    """
    mean, deviation = data.stats["mean"], data.stats["deviation"]
    standard = np.asarray(split.targets, dtype=np.float64)
    outputs = kept["values"].squeeze(1).numpy().astype(np.float64)
    true, found = standard * deviation + mean, outputs * deviation + mean
    values = {"loss": float(np.mean((outputs - standard) ** 2))}
    for name in dict.fromkeys((*ALWAYS, *names)):
        if name not in values:
            values[name] = SCORES[name](true, found)
    return values


def _mse(true: Values, found: Values) -> float:
    return float(np.mean((found - true) ** 2))


def _mae(true: Values, found: Values) -> float:
    return float(np.mean(np.abs(found - true)))


def _r2(true: Values, found: Values) -> float:
    from sklearn.metrics import r2_score

    return float(r2_score(true, found)) if np.isfinite(found).all() else float("nan")


def _spearman(true: Values, found: Values) -> float:
    if np.ptp(true) == 0 or np.ptp(found) == 0:
        return 0.0
    from scipy.stats import spearmanr

    return float(spearmanr(true, found).statistic)


SCORES: dict[str, Callable[[Values, Values], float]] = {
    "mse": _mse,
    "rmse": lambda true, found: float(np.sqrt(_mse(true, found))),
    "mae": _mae,
    "r2": _r2,
    "spearman": _spearman,
}
