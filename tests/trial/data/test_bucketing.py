"""Batches of similar lengths: every example once an epoch, hardly any padding, never the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sft_tune.trial.data import bucketed_order
from sft_tune.trial.plan import Plan


def log_normal(n: int, seed: int = 0) -> NDArray[np.int64]:
    """Lengths as those of sentences and reviews are: median 59, at most 256."""
    drawn = np.random.default_rng(seed).lognormal(np.log(59), 0.75, n)
    return np.clip(drawn.round(), 3, 256).astype(np.int64)


def plan_of(lengths: NDArray[np.int64] | None, examples: int, batch_size: int) -> Plan:
    return Plan(examples, batch_size, epochs=2, rung_count=1, seed=3, lengths=lengths)


def padded(plan: Plan, lengths: NDArray[np.int64]) -> int:
    """Return the tokens of an epoch, padding included."""
    batches = [plan.indices(step).numpy() for step in range(plan.steps_per_epoch)]
    return sum(int(lengths[batch].max()) * len(batch) for batch in batches)


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=300),
    batch_size=st.integers(1, 64),
)
def test_each_example_comes_once_an_epoch_in_batches_of_the_plan_s_sizes(
    lengths: list[int], batch_size: int
) -> None:
    array = np.array(lengths)
    ours = plan_of(array, len(lengths), batch_size)
    random = plan_of(None, len(lengths), batch_size)
    for epoch in range(2):
        steps = range(epoch * ours.steps_per_epoch, (epoch + 1) * ours.steps_per_epoch)
        batches = [ours.indices(step) for step in steps]
        assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
        assert [len(b) for b in batches] == [len(random.indices(step)) for step in steps]


def test_hardly_anything_is_padding() -> None:
    lengths = log_normal(2000)
    bucketed = padded(plan_of(lengths, 2000, 16), lengths)
    random = padded(plan_of(None, 2000, 16), lengths)
    assert bucketed < 1.15 * lengths.sum() < random
    assert random > 1.7 * bucketed


def test_epochs_have_other_batches_in_another_order() -> None:
    def batches(epoch: int) -> list[frozenset[int]]:
        order: Tensor = bucketed_order(log_normal(640), 16, 40, seed=1, epoch=epoch)
        return [frozenset(part.tolist()) for part in order.split(16)]

    first, second = batches(0), batches(1)
    assert batches(0) == first
    assert len(set(first) & set(second)) <= 1
    # Not from long to short either, which would be a curriculum that nobody asked for.
    means = [np.mean(log_normal(640)[list(batch)]) for batch in first]
    assert abs(np.corrcoef(means, np.arange(40))[0, 1]) < 0.4


@pytest.mark.parametrize(("examples", "batch_size"), [(33, 16), (40, 16), (5, 16), (48, 16)])
def test_what_fills_no_batch_comes_last(examples: int, batch_size: int) -> None:
    plan = plan_of(log_normal(examples), examples, batch_size)
    sizes = [len(plan.indices(step)) for step in range(plan.steps_per_epoch)]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
