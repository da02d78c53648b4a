from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LRScheduler

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


@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    horizon=st.integers(1, 400),
    per_epoch=st.integers(1, 50),
    warmup=st.floats(0, 0.99),
    low=st.floats(0, 2),
    decay=st.floats(0.01, 1),
)
def test_a_rate_stays_within_its_bounds_and_never_jumps(
    schedule: Any, horizon: int, per_epoch: int, warmup: float, low: float, decay: float
) -> None:
    training = TrainingSpec(
        learning_rate=1.0,
        schedule=schedule,
        warmup=warmup,
        min_learning_rate=low,
        decay_factor=decay,
    )
    series = rates(training, horizon, per_epoch)
    assert all(0 <= rate <= 1 for rate in series)
    warm = warmup_steps(training, horizon)
    after = series[warm:]
    assert series[:warm] == sorted(series[:warm])
    assert after == sorted(after, reverse=True)
    assert after[0] == 1.0
    # The steepest a step can be: the rise of the warm-up, cosine's slope, an epoch's decay.
    steepest = max(1 / max(warm, 1), math.pi / 2 / (horizon - warm), 1 - decay ** (1 / per_epoch))
    jumps = [abs(b - a) for a, b in zip(series, series[1:], strict=False)]
    assert all(jump <= steepest + 1e-9 for jump in jumps)
