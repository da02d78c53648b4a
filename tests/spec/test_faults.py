"""Faults are found on curves made to show them, and healthy curves have none."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_tune.spec.fault_rules import find_faults
from sft_tune.spec.faults import SHORT, Fault, Rung, from_flags, to_flags

Series = Callable[[float], float]


def curve(
    count: int = 10,
    *,
    train: Series = lambda t: 0.3 + 1.7 * math.exp(-t / 0.15),
    validation: Series = lambda t: 0.4 + 1.6 * math.exp(-t / 0.15),
    value: Series = lambda t: 0.9 - 0.6 * math.exp(-t / 0.15),
    norm: Series = lambda t: 2.0 - t,
    largest: Series = lambda t: 8.0,
    ratio: Series = lambda t: 1e-3 * (1.01 - t),
    upto: int | None = None,
) -> list[Rung]:
    """Return rungs of a course that learns and settles, but for the series that are given."""
    places = [(i + 1) / count for i in range(count)]
    return [
        Rung(round(100 * t), value(t), train(t), validation(t), norm(t), largest(t), ratio(t))
        for t in places[:upto]
    ]


def names(rungs: Sequence[Rung], **options: Any) -> list[str]:
    return [fault.name for fault in find_faults(rungs, maximize=True, **options)]


def jumping(low: float, high: float) -> Series:
    """Return a series that is high at every second rung of ten."""
    return lambda t: high if round(10 * t) % 2 else low


def test_a_course_that_learns_and_settles_has_no_fault() -> None:
    for upto in range(11):
        assert names(curve(upto=upto)) == []


@pytest.mark.parametrize(
    ("rungs", "expected", "since", "evidence"),
    [
        (
            curve(train=lambda t: 2 - 2 * t if t < 0.55 else 1 + 4 * (t - 0.5)),
            "diverging", 50, "training loss rose from 1 at 50 % to 3 at 100 %",
        ),
        (
            curve(largest=lambda t: 900.0 if round(10 * t) == 3 else 5.0),
            "exploding_gradients", 30, "a gradient norm of 900 before 30 %",
        ),
        (
            curve(norm=lambda t: 1.0 + 30 * t * t, largest=lambda t: 40, train=lambda t: 1 + t / 4),
            "exploding_gradients", 90, "median gradient norm 1.3 at 10 %, 31 at 100 %",
        ),
        (
            curve(
                norm=lambda t: 10 ** (-8 * t), train=lambda t: 2.3, validation=lambda t: 2.3,
                value=lambda t: 0.1 + t / 100, largest=lambda t: 1.0,
            ),
            "vanishing_gradients", 50, "while the training loss is still 2.3",
        ),
        (
            curve(
                train=lambda t: 1.5 * math.exp(-3 * t),
                validation=lambda t: 0.6 + 1.2 * abs(t - 0.4), value=lambda t: 0.8,
            ),
            "overfitting", 40, "validation loss rose from 0.6 at 40 % to 1.32 at 100 %",
        ),
        (
            curve(train=lambda t: 2 - 1.5 * t, validation=lambda t: 1.9 - 1.5 * t),
            "underfitting", None, "validation loss still fell by 53%",
        ),
        (
            curve(
                train=lambda t: 2.3 - t / 100, validation=lambda t: 2.3 - t / 100,
                value=lambda t: 0.1 + t / 100, ratio=lambda t: 2e-7,
            ),
            "underfitting", None, "a step moves the weights by 2e-07 of their norm",
        ),
        (
            curve(
                train=lambda t: 2.3, validation=lambda t: 2.3, value=lambda t: 0.1,
                norm=lambda t: 0.5,
            ),
            "plateau", 40, "no gain since 40 %: training loss 2.3 then and 2.3 at 100 %",
        ),
        (
            curve(value=jumping(0.6, 0.8)),
            "noisy_validation", None, "the objective jumps by about",
        ),
        (
            curve(
                train=lambda t: 1.5 * math.exp(-t) + jumping(0, 0.5)(t), ratio=lambda t: 2e-2
            ),
            "edge_of_stability", 30, "training loss jumped up at 30 %, 50 %",
        ),
    ],
)  # fmt: skip
def test_a_fault_is_found_with_its_evidence(
    rungs: list[Rung], expected: str, since: int | None, evidence: str
) -> None:
    found = find_faults(rungs, maximize=True)
    assert [fault.name for fault in found] == [expected]
    assert found[0].since == since
    assert evidence in found[0].evidence


def test_a_trial_that_ended_as_diverged_says_so_and_no_more() -> None:
    note = "gradient norm became inf at step 12 of 40"
    rungs = curve(upto=6, value=jumping(0.2, 0.9))
    found = find_faults(rungs, maximize=True, reason="diverged", note=note)
    assert [(f.name, f.since, f.evidence) for f in found] == [
        ("diverging", 60, note),
        ("exploding_gradients", 60, note),
    ]
    assert names([], reason="diverged", note="loss became nan at step 1 of 40") == ["diverging"]


def test_a_rising_validation_loss_is_forgiven_while_the_objective_gains() -> None:
    course: dict[str, Any] = {
        "train": lambda t: 1.5 * math.exp(-3 * t),
        "value": lambda t: 0.7 + 0.2 * t,
    }
    assert names(curve(validation=lambda t: 0.6 + 0.3 * abs(t - 0.4), **course)) == []
    assert names(curve(validation=lambda t: 0.6 + 1.0 * abs(t - 0.4), **course)) == ["overfitting"]


# Validation losses at ten rungs of `builtin:convnet` on 200 digits, two in five mislabelled: with
# learning rates 0.003 and 0.01, six seeds each. Training losses fell from 2 to less than 0.05.
ON_WRONG_LABELS = [
    [1.519, 1.039, 1.179, 1.24, 1.31, 1.773, 1.545, 1.739, 1.84, 1.837],
    [1.671, 0.979, 1.097, 1.302, 1.656, 1.585, 1.705, 1.94, 1.671, 1.873],
    [1.674, 0.97, 1.028, 1.232, 1.297, 1.558, 1.383, 1.342, 1.315, 1.34],
    [1.619, 0.969, 1.012, 1.116, 1.639, 1.442, 1.625, 1.557, 1.734, 1.585],
    [1.728, 1.01, 0.898, 1.11, 1.05, 1.675, 1.494, 1.533, 1.571, 1.565],
    [1.556, 0.977, 1.005, 1.331, 1.409, 1.209, 1.552, 1.472, 1.783, 1.707],
    [1.237, 1.081, 1.002, 1.451, 2.068, 1.709, 2.565, 2.275, 1.933, 2.244],
    [1.102, 0.951, 1.319, 1.884, 1.839, 2.12, 2.288, 2.891, 2.619, 2.074],
    [1.231, 1.118, 1.05, 2.011, 1.861, 2.022, 1.961, 2.443, 2.105, 2.746],
    [1.132, 1.042, 1.203, 1.801, 1.718, 2.005, 2.037, 2.349, 1.918, 2.159],
    [1.191, 0.954, 0.79, 1.201, 1.575, 1.53, 1.68, 1.668, 2.06, 2.009],
    [1.1, 0.995, 0.945, 1.523, 1.962, 1.62, 1.981, 1.881, 2.694, 2.843],
]


def test_recorded_overfitting_is_found_though_its_losses_jump() -> None:
    found = 0
    for losses in ON_WRONG_LABELS:
        rungs = curve(
            train=lambda t: 2.2 * math.exp(-5 * t),
            validation=lambda t, losses=losses: losses[round(10 * t) - 1],
            value=lambda t: 0.63,
        )
        found += "overfitting" in names(rungs)
    assert found >= 10


@pytest.mark.parametrize("count", [5, 10, 20])
@pytest.mark.parametrize(("fall", "most"), [(1.5, 10), (0.0, 60)])
def test_a_noisy_loss_that_does_not_rise_is_seldom_called_overfitting(
    count: int, fall: float, most: int
) -> None:
    draw = random.Random(count)

    def noisy(t: float) -> float:
        return 1 + fall * math.exp(-6 * t) + draw.gauss(0, 0.1)

    course: dict[str, Any] = {"train": lambda t: 0.9 - 0.8 * t, "value": lambda t: 0.8}
    found = [names(curve(count, validation=noisy, **course)) for _ in range(1000)]
    assert sum("overfitting" in faults for faults in found) <= most


def test_small_gradients_of_a_small_loss_are_sound() -> None:
    rungs = curve(
        train=lambda t: 10 ** (-6 * t), norm=lambda t: 10 ** (-8 * t), largest=lambda t: 2.0
    )
    assert names(rungs) == []


def test_what_was_not_measured_or_is_not_finite_is_no_evidence() -> None:
    bare = [Rung(10 * i, 0.1 * i) for i in range(1, 11)]
    assert names(bare) == []
    assert names([*bare[:-1], Rung(100, math.nan, math.nan, math.inf)]) == []
    assert names([]) == []


@settings(max_examples=400, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 40),
    tau=st.floats(0.02, 0.2),
    start=st.floats(0.5, 5.0),
    floor=st.floats(0.02, 0.5),
    noise=st.floats(0.0, 0.01),
    gap=st.floats(1.02, 1.6),
    update=st.floats(3e-5, 3e-2),
    spike=st.floats(1.0, 15.0),
    minimize=st.booleans(),
)
def test_healthy_courses_have_no_fault(
    seed: int, count: int, tau: float, start: float, floor: float, noise: float, gap: float,
    update: float, spike: float, minimize: bool,
) -> None:  # fmt: skip
    """A loss that falls to its floor, validation above it, gradients that shrink, small noise."""
    draw = random.Random(seed)

    def wobble() -> float:
        return 1 + draw.gauss(0, noise)

    def loss(t: float) -> float:
        return start * (floor + (1 - floor) * math.exp(-t / tau)) * wobble()

    def mean_loss(t: float) -> float:
        """Return the mean since the rung before, as training has it."""
        fallen = tau * count * (math.exp(-(t - 1 / count) / tau) - math.exp(-t / tau))
        return start * (floor + (1 - floor) * fallen) * wobble()

    rungs = []
    for i in range(count):
        t = (i + 1) / count
        validation = loss(t) * gap
        value = validation if minimize else (0.95 - 0.7 * math.exp(-t / tau)) * wobble()
        norm = (0.3 + 2 * math.exp(-t / tau)) * (1 + draw.random())
        rungs.append(
            Rung(
                round(100 * t), value, mean_loss(t), validation, norm, norm * spike,
                update * (1.001 - t),
            )
        )  # fmt: skip
    for upto in range(count + 1):
        assert find_faults(rungs[:upto], maximize=not minimize) == []


def test_flags_come_back_from_json() -> None:
    faults = [Fault("overfitting", 40, "it rose"), Fault("noisy_validation", None, "it jumps")]
    flags = json.loads(json.dumps({"micro_batch": 4, "faults": to_flags(faults)}))
    assert from_flags(flags) == faults
    assert [fault.short for fault in faults] == ["overfitting since 40 %", "noisy validation"]
    assert from_flags(None) == from_flags({"micro_batch": 4}) == []
    assert {fault.name for fault in faults} <= set(SHORT)


def test_a_rung_is_read_off_what_a_worker_reports() -> None:
    evaluation = {
        "progress": 30, "metrics": {"accuracy": 0.5, "loss": 0.7}, "train_loss": 0.6, "step": 4,
        "gradient_norm": 1.0, "gradient_norm_max": 2.0, "update_ratio": 1e-3,
    }  # fmt: skip
    assert Rung.of(evaluation, "accuracy") == Rung(30, 0.5, 0.6, 0.7, 1.0, 2.0, 1e-3)
