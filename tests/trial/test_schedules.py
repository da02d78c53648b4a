from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LRScheduler,
    OneCycleLR,
    PolynomialLR,
    StepLR,
)

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.schedules import SCHEDULES, learning_rate, warmup_steps

HORIZON = 100
PER_EPOCH = 10


def rates(
    training: TrainingSpec, horizon: int = HORIZON, per_epoch: int = PER_EPOCH
) -> list[float]:
    return [learning_rate(training, step, horizon, per_epoch) for step in range(horizon)]


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        ({"schedule": "constant", "warmup": 0.0}, 0, 1.0),
        ({"schedule": "constant", "warmup": 0.0}, 99, 1.0),
        ({"schedule": "constant", "warmup": 0.2}, 0, 0.0),
        ({"schedule": "constant", "warmup": 0.2}, 5, 0.25),
        ({"schedule": "constant", "warmup": 0.2}, 19, 0.95),
        ({"schedule": "constant", "warmup": 0.2}, 20, 1.0),
        ({"schedule": "linear", "warmup": 0.0}, 25, 0.75),
        ({"schedule": "linear", "warmup": 0.0}, 99, 0.01),
        ({"schedule": "linear", "warmup": 0.2}, 60, 0.5),
        ({"schedule": "linear", "warmup": 0.2, "min_learning_rate": 0.2}, 60, 0.6),
        ({"schedule": "cosine", "warmup": 0.0}, 50, 0.5),
        ({"schedule": "cosine", "warmup": 0.0}, 25, (1 + math.cos(math.pi / 4)) / 2),
        ({"schedule": "cosine", "warmup": 0.2, "min_learning_rate": 0.2}, 60, 0.6),
        ({"schedule": "exponential", "warmup": 0.0, "decay_factor": 0.5}, 10, 0.5),
        ({"schedule": "exponential", "warmup": 0.0, "decay_factor": 0.5}, 5, 0.5**0.5),
        ({"schedule": "exponential", "warmup": 0.2, "decay_factor": 0.5}, 40, 0.25),
        ({"schedule": "cosine", "warmup": 0.0, "cycles": 2}, 25, 0.5),
        ({"schedule": "cosine", "warmup": 0.0, "cycles": 2}, 50, 1.0),
        ({"schedule": "cosine", "warmup": 0.2, "cycles": 4, "min_learning_rate": 0.2}, 50, 0.6),
        ({"schedule": "step", "warmup": 0.0, "decay_factor": 0.5}, 9, 1.0),
        ({"schedule": "step", "warmup": 0.0, "decay_factor": 0.5}, 10, 0.5),
        ({"schedule": "step", "warmup": 0.2, "decay_factor": 0.5, "decay_epochs": 3}, 49, 1.0),
        ({"schedule": "step", "warmup": 0.2, "decay_factor": 0.5, "decay_epochs": 3}, 50, 0.5),
        ({"schedule": "polynomial", "warmup": 0.0}, 50, 0.25),
        ({"schedule": "polynomial", "warmup": 0.2, "power": 3.0}, 60, 0.125),
        ({"schedule": "polynomial", "warmup": 0.2, "min_learning_rate": 0.2}, 60, 0.4),
        ({"schedule": "inverse_sqrt", "warmup": 0.2}, 20, 1.0),
        ({"schedule": "inverse_sqrt", "warmup": 0.2}, 80, 0.5),
        ({"schedule": "inverse_sqrt", "warmup": 0.0}, 99, 0.1),
        ({"schedule": "warmup_stable_decay", "warmup": 0.1}, 5, 0.5),
        ({"schedule": "warmup_stable_decay", "warmup": 0.1}, 80, 1.0),
        ({"schedule": "warmup_stable_decay", "warmup": 0.1}, 90, 0.5),
        ({"schedule": "warmup_stable_decay", "cooldown": 0.4, "min_learning_rate": 0.2}, 80, 0.6),
        ({"schedule": "one_cycle", "warmup": 0.2}, 0, 0.04),
        ({"schedule": "one_cycle", "warmup": 0.2}, 10, 0.52),
        ({"schedule": "one_cycle", "warmup": 0.2}, 20, 1.0),
        ({"schedule": "one_cycle", "warmup": 0.2, "min_learning_rate": 0.1}, 99, 0.1),
    ],
)
def test_a_rate_is_what_its_formula_says(
    settings: dict[str, Any], step: int, expected: float
) -> None:
    training = TrainingSpec(learning_rate=1.0, **settings)
    assert learning_rate(training, step, HORIZON, PER_EPOCH) == pytest.approx(expected, rel=1e-12)


def of_torch(scheduler: LRScheduler, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def some_optimizer(rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)


def test_cosine_is_torchs_cosine() -> None:
    training = TrainingSpec(
        learning_rate=0.3, schedule="cosine", warmup=0.0, min_learning_rate=0.01
    )
    theirs = CosineAnnealingLR(some_optimizer(0.3), T_max=HORIZON, eta_min=0.01)
    assert rates(training) == pytest.approx(of_torch(theirs, HORIZON), rel=1e-9)


def test_exponential_is_torchs_exponential_at_every_epoch() -> None:
    training = TrainingSpec(learning_rate=0.3, schedule="exponential", warmup=0.0, decay_factor=0.8)
    theirs = ExponentialLR(some_optimizer(0.3), gamma=0.8)
    assert rates(training)[::PER_EPOCH] == pytest.approx(of_torch(theirs, 10), rel=1e-9)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25])
def test_linear_with_warmup_is_transformers(warmup: float) -> None:
    from transformers import get_linear_schedule_with_warmup

    training = TrainingSpec(learning_rate=0.3, schedule="linear", warmup=warmup)
    theirs = get_linear_schedule_with_warmup(
        some_optimizer(0.3), warmup_steps(training, HORIZON), HORIZON
    )
    assert rates(training) == pytest.approx(of_torch(theirs, HORIZON), rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "scheduler", "arguments"),
    [
        (
            {"schedule": "cosine", "cycles": 4, "min_learning_rate": 0.01},
            CosineAnnealingWarmRestarts,
            {"T_0": HORIZON // 4, "eta_min": 0.01},
        ),
        (
            {"schedule": "step", "decay_factor": 0.7, "decay_epochs": 3},
            StepLR,
            {"step_size": 3 * PER_EPOCH, "gamma": 0.7},
        ),
        (
            {"schedule": "polynomial", "power": 3.0},
            PolynomialLR,
            {"total_iters": HORIZON, "power": 3.0},
        ),
        (
            # Torch counts the first step among the warm-up's.
            {"schedule": "one_cycle", "warmup": 0.3, "min_learning_rate": 0.3 / 25 / 1e4},
            OneCycleLR,
            {"max_lr": 0.3, "total_steps": HORIZON, "pct_start": 0.31, "cycle_momentum": False},
        ),
    ],
)
def test_others_are_torchs(settings: dict[str, Any], scheduler: Any, arguments: Any) -> None:
    training = TrainingSpec(learning_rate=0.3, **{"warmup": 0.0, **settings})
    theirs = scheduler(some_optimizer(0.3), **arguments)
    assert rates(training) == pytest.approx(of_torch(theirs, HORIZON), rel=1e-6)


def test_inverse_sqrt_and_warmup_stable_decay_are_transformers() -> None:
    from transformers import get_inverse_sqrt_schedule, get_wsd_schedule

    training = TrainingSpec(learning_rate=0.3, schedule="inverse_sqrt", warmup=0.2)
    theirs = get_inverse_sqrt_schedule(some_optimizer(0.3), num_warmup_steps=20)
    assert rates(training) == pytest.approx(of_torch(theirs, HORIZON), rel=1e-9)
    training = TrainingSpec(learning_rate=0.3, schedule="warmup_stable_decay", warmup=0.1)
    theirs = get_wsd_schedule(
        some_optimizer(0.3), 10, num_decay_steps=20, num_training_steps=HORIZON, decay_type="linear"
    )
    assert rates(training) == pytest.approx(of_torch(theirs, HORIZON), rel=1e-9)


JUMPS = ("step", "inverse_sqrt", "warmup_stable_decay", "one_cycle", "polynomial")


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    horizon=st.integers(1, 400),
    per_epoch=st.integers(1, 50),
    warmup=st.floats(0, 0.99),
    low=st.floats(0, 2),
    decay=st.floats(0.01, 1),
    power=st.floats(0.1, 8),
    cooldown=st.floats(0.01, 1),
)
def test_a_rate_stays_within_its_bounds_and_falls_after_its_warmup(
    schedule: Any,
    horizon: int,
    per_epoch: int,
    warmup: float,
    low: float,
    decay: float,
    power: float,
    cooldown: float,
) -> None:
    training = TrainingSpec(
        learning_rate=1.0,
        schedule=schedule,
        warmup=warmup,
        min_learning_rate=low,
        decay_factor=decay,
        power=power,
        cooldown=cooldown,
    )
    series = rates(training, horizon, per_epoch)
    assert all(0 <= rate <= 1 for rate in series)
    warm = warmup_steps(training, horizon)
    after = series[warm:]
    assert series[:warm] == sorted(series[:warm])
    assert after == sorted(after, reverse=True)
    assert after[0] == 1.0
    if schedule in JUMPS:
        return
    # The steepest a step can be: the rise of the warm-up, cosine's slope, an epoch's decay.
    steepest = max(1 / max(warm, 1), math.pi / 2 / (horizon - warm), 1 - decay ** (1 / per_epoch))
    jumps = [abs(b - a) for a, b in zip(series, series[1:], strict=False)]
    assert all(jump <= steepest + 1e-9 for jump in jumps)


@given(
    horizon=st.integers(1, 400),
    cycles=st.integers(1, 20),
    warmup=st.floats(0, 0.9),
)
def test_restarts_begin_at_the_peak_and_come_as_often_as_asked(
    horizon: int, cycles: int, warmup: float
) -> None:
    training = TrainingSpec(learning_rate=1.0, schedule="cosine", warmup=warmup, cycles=cycles)
    after = rates(training, horizon)[warmup_steps(training, horizon) :]
    assert after[0] == 1.0 and all(0 <= rate <= 1 for rate in after)
    rises = sum(b > a for a, b in zip(after, after[1:], strict=False))
    assert rises == cycles - 1 or len(after) < 2 * cycles


@given(horizon=st.integers(2, 400), cooldown=st.floats(0.01, 0.8))
def test_a_stable_rate_is_the_peak_until_the_cooldown(horizon: int, cooldown: float) -> None:
    training = TrainingSpec(
        learning_rate=1.0, schedule="warmup_stable_decay", warmup=0.1, cooldown=cooldown
    )
    series = rates(training, horizon)
    for step in range(warmup_steps(training, horizon), horizon):
        assert (series[step] == 1.0) is (horizon - step >= cooldown * horizon)
