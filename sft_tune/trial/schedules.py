"""Learning rates as pure functions of the step: a warm-up, then one of `SCHEDULES`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sft_tune.spec.training import TrainingSpec

# one_cycle begins at the peak divided by this (Smith and Topin 2018; torch's default).
ONE_CYCLE_START = 25.0


@dataclass(frozen=True)
class Position:
    """Where a step stands after the warm-up.

    Attributes:
        step: steps since the warm-up's end, 0 and more.
        warm: steps of the warm-up.
        horizon: steps of the whole trial.
        per_epoch: steps of an epoch.
    """

    step: int
    warm: int
    horizon: int
    per_epoch: int

    @property
    def share(self) -> float:
        """Of the steps after the warm-up, 0 (the first) to 1 (the horizon)."""
        return min(self.step / (self.horizon - self.warm), 1.0)

    @property
    def epochs(self) -> float:
        """Since the warm-up's end, fractional."""
        return self.step / self.per_epoch


Schedule = Callable[[TrainingSpec, Position], float]


def constant(training: TrainingSpec, at: Position) -> float:
    """Return the peak."""
    return training.learning_rate


def linear(training: TrainingSpec, at: Position) -> float:
    """Return the straight line from the peak to the minimum: ``min + (peak - min)(1 - t/T)``."""
    return _between(training, 1 - at.share)


def cosine(training: TrainingSpec, at: Position) -> float:
    """Return ``min + (peak - min)(1 + cos(pi t/T))/2`` (Loshchilov and Hutter 2017, eq. 5).

    With ``cycles`` above 1 it begins again from the peak after each ``T/cycles`` (warm restarts).
    """
    # Of whole steps, so that no rounding puts a restart one step late.
    cycle = at.step * training.cycles / (at.horizon - at.warm)
    share = cycle % 1.0 if at.step < at.horizon - at.warm else 1.0
    return _between(training, (1 + math.cos(math.pi * share)) / 2)


def exponential(training: TrainingSpec, at: Position) -> float:
    """Return ``peak * gamma^t`` with ``t`` in epochs and ``gamma`` the decay factor."""
    return training.learning_rate * math.pow(training.decay_factor, at.epochs)


def step(training: TrainingSpec, at: Position) -> float:
    """Return ``peak * gamma^floor(t/k)``, ``t`` in epochs and ``k`` the setting decay_epochs."""
    drops = at.step // (at.per_epoch * training.decay_epochs)
    return training.learning_rate * math.pow(training.decay_factor, drops)


def polynomial(training: TrainingSpec, at: Position) -> float:
    """Return ``min + (peak - min)(1 - t/T)^power``."""
    return _between(training, math.pow(1 - at.share, training.power))


def inverse_sqrt(training: TrainingSpec, at: Position) -> float:
    """Return ``peak * sqrt(w/(w + t))``, ``w`` steps of warm-up (Vaswani et al. 2017, eq. 3).

    Without a warm-up ``w`` is 1.
    """
    warm = max(at.warm, 1)
    return training.learning_rate * math.sqrt(warm / (warm + at.step))


def warmup_stable_decay(training: TrainingSpec, at: Position) -> float:
    """Return the peak, and in the last share ``cooldown`` of the trial a line to the minimum.

    Hu et al. 2024, section 4; the line is that of Hägele et al. 2024.
    """
    length = training.cooldown * at.horizon
    left = at.horizon - at.warm - at.step
    return _between(training, min(left / min(length, at.horizon - at.warm), 1.0))


def one_cycle(training: TrainingSpec, at: Position) -> float:
    """Return the cosine from the peak to the minimum, which the last step has.

    Smith and Topin 2018, as torch's OneCycleLR without its cycle of momentum.
    """
    last = at.horizon - at.warm - 1
    return _between(training, (1 + math.cos(math.pi * (at.step / last if last else 0.0))) / 2)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "step": step,
    "polynomial": polynomial,
    "inverse_sqrt": inverse_sqrt,
    "warmup_stable_decay": warmup_stable_decay,
    "one_cycle": one_cycle,
}


def at_progress(training: TrainingSpec, progress: float) -> TrainingSpec:
    """Return ``training`` with the peak that it has from ``progress`` on.

    Two-phase fine-tuning may give the second phase a peak of its own; the schedule goes on.
    """
    peak = training.unfrozen_learning_rate
    if training.freeze == "head_first" and peak is not None and progress >= training.unfreeze_at:
        return training.model_copy(update={"learning_rate": peak})
    return training


def warmup_steps(training: TrainingSpec, horizon: int) -> int:
    """Return the steps of the warm-up: the rounded share of ``horizon``, always short of it."""
    return min(round(training.warmup * horizon), horizon - 1)


def learning_rate(training: TrainingSpec, step: int, horizon: int, steps_per_epoch: int) -> float:
    """Return the learning rate of step ``step``, 0 to ``horizon - 1``.

    The warm-up rises linearly from 0 at step 0 to the peak at its end, as transformers' schedules
    do (one_cycle: along a cosine, from the peak divided by `ONE_CYCLE_START`); the rest is the
    function of `SCHEDULES` that ``training.schedule`` names.
    """
    warm = warmup_steps(training, horizon)
    if step < warm and training.schedule == "one_cycle":
        risen = (1 - math.cos(math.pi * step / warm)) / 2
        return training.learning_rate * (1 + (ONE_CYCLE_START - 1) * risen) / ONE_CYCLE_START
    if step < warm:
        return training.learning_rate * step / warm
    at = Position(step=step - warm, warm=warm, horizon=horizon, per_epoch=steps_per_epoch)
    return SCHEDULES[training.schedule](training, at)


def _between(training: TrainingSpec, share: float) -> float:
    """Return ``share`` of the way from the minimum to the peak.

    A minimum above the peak, which a search may draw, is the peak: a rate never rises after
    its warm-up.
    """
    low = min(training.min_learning_rate, training.learning_rate)
    return low + (training.learning_rate - low) * share
