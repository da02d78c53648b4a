"""Learning rates as pure functions of the step: a warm-up, then one of `SCHEDULES`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sft_tune.spec.training import TrainingSpec


@dataclass(frozen=True)
class Position:
    """Where a step stands after the warm-up.

    Attributes:
        share: of the steps after the warm-up, 0 (the first) to 1 (the horizon).
        epochs: since the warm-up's end, fractional.
    """

    share: float
    epochs: float


Schedule = Callable[[TrainingSpec, Position], float]


def constant(training: TrainingSpec, at: Position) -> float:
    """Return the peak."""
    return training.learning_rate


def linear(training: TrainingSpec, at: Position) -> float:
    """Return the straight line from the peak to the minimum: ``min + (peak - min)(1 - t/T)``."""
    return _between(training, 1 - at.share)


def cosine(training: TrainingSpec, at: Position) -> float:
    """Return ``min + (peak - min)(1 + cos(pi t/T))/2`` (Loshchilov and Hutter 2017, eq. 5)."""
    return _between(training, (1 + math.cos(math.pi * at.share)) / 2)


def exponential(training: TrainingSpec, at: Position) -> float:
    """Return ``peak * gamma^t`` with ``t`` in epochs and ``gamma`` the decay factor."""
    return training.learning_rate * math.pow(training.decay_factor, at.epochs)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
}


def warmup_steps(training: TrainingSpec, horizon: int) -> int:
    """Return the steps of the warm-up: the rounded share of ``horizon``, always short of it."""
    return min(round(training.warmup * horizon), horizon - 1)


def learning_rate(training: TrainingSpec, step: int, horizon: int, steps_per_epoch: int) -> float:
    """Return the learning rate of step ``step``, 0 to ``horizon - 1``.

    The warm-up rises linearly from 0 at step 0 to the peak at its end, as transformers' schedules
    do; the rest is the function of `SCHEDULES` that ``training.schedule`` names.
    """
    warm = warmup_steps(training, horizon)
    if step < warm:
        return training.learning_rate * step / warm
    position = Position(
        share=min((step - warm) / (horizon - warm), 1.0), epochs=(step - warm) / steps_per_epoch
    )
    return SCHEDULES[training.schedule](training, position)


def _between(training: TrainingSpec, share: float) -> float:
    """Return ``share`` of the way from the minimum to the peak.

    A minimum above the peak, which a search may draw, is the peak: a rate never rises after
    its warm-up.
    """
    low = min(training.min_learning_rate, training.learning_rate)
    return low + (training.learning_rate - low) * share
