"""The parts of a batch, and the search for parts that fit."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft_tune.trial.data import FeatureSplit
from sft_tune.trial.data.resident import held_bytes, hold
from sft_tune.trial.portions import Portion, within_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("limit", "in_pairs", "count", "sizes"),
    [
        (None, False, 5, [5]),
        (8, False, 8, [8]),
        (8, False, 9, [5, 4]),
        (8, False, 64, [8] * 8),
        (3, False, 8, [3, 3, 2]),
        (1, False, 3, [1, 1, 1]),
        (4, True, 5, [3, 2]),
        (2, True, 5, [3, 2]),
        (2, True, 4, [2, 2]),
        (1, True, 3, [1, 1, 1]),
    ],
)
def test_parts_are_as_even_as_can_be(
    limit: int | None, in_pairs: bool, count: int, sizes: list[int]
) -> None:
    assert Portion(limit, in_pairs).sizes(count) == sizes


@given(st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_parts_are_the_batch_and_within_the_limit(count: int, limit: int, in_pairs: bool) -> None:
    sizes = Portion(limit, in_pairs).sizes(count)
    assert sum(sizes) == count and min(sizes) >= 1
    if in_pairs and limit > 1 and count > 1:
        assert min(sizes) >= 2 and max(sizes) <= max(limit, 3)
    else:
        assert max(sizes) <= limit


@given(st.integers(1, 200), st.booleans(), st.integers(0, 200))
def test_the_largest_part_halves_until_it_fits(count: int, in_pairs: bool, fits: int) -> None:
    portion, tried = Portion(in_pairs=in_pairs), []
    while True:
        tried.append(max(portion.sizes(count)))
        if tried[-1] <= fits or not portion.halve(count):
            break
    assert tried == sorted(tried, reverse=True)
    assert len(tried) <= 10
    assert tried[-1] == 1 or tried[-1] <= fits
    assert all(after >= before // 2 for before, after in zip(tried, tried[1:], strict=False))


def run_out() -> None:
    torch.empty(2**50)


def test_what_fits_is_kept_for_the_next_batch() -> None:
    portion, undone, tried = Portion(), [], []

    def work(sizes: list[int]) -> list[int]:
        tried.append(max(sizes))
        if max(sizes) > 3:
            run_out()
        return sizes

    for _ in range(2):
        found = within_memory(portion, 12, work, device=CPU, undo=lambda: undone.append(tried[-1]))
        assert found == [3, 3, 3, 3]
    assert tried == [12, 6, 3, 3]
    assert undone == [12, 6]


def test_data_that_is_held_goes_before_a_batch_is_taken_apart() -> None:
    split = FeatureSplit(np.zeros((4, 2), np.float32), np.zeros(4, np.int64))
    hold("digits", {"train": split}, CPU, most=1000)
    portion, tried = Portion(), []

    def work(sizes: list[int]) -> None:
        tried.append((max(sizes), held_bytes(CPU)))
        if len(tried) < 3:
            run_out()

    within_memory(portion, 12, work, device=CPU)
    assert tried == [(12, 64), (12, 0), (6, 0)]


def test_when_one_does_not_fit_the_last_error_is_raised() -> None:
    tried = []

    def work(sizes: list[int]) -> None:
        tried.append(max(sizes))
        run_out()

    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        within_memory(Portion(), 5, work, device=CPU)
    assert tried == [5, 3, 2, 1]


@pytest.mark.parametrize("error", [RuntimeError("shapes"), ValueError("odd"), KeyError("no")])
def test_another_error_is_not_tried_again(error: Exception) -> None:
    tried = []

    def work(sizes: list[int]) -> None:
        tried.append(sizes)
        raise error

    with pytest.raises(type(error)):
        within_memory(Portion(), 5, work, device=CPU)
    assert len(tried) == 1


@pytest.mark.parametrize("message", ["could not create a primitive", "more than 1 value per"])
def test_what_fails_in_the_wake_of_lack_of_memory_is_lack_of_memory(message: str) -> None:
    def work(sizes: list[int]) -> None:
        if max(sizes) > 1:
            raise MemoryError("no room")
        raise ValueError(f"{message} channel")

    with pytest.raises(MemoryError, match="no room"):
        within_memory(Portion(), 4, work, device=CPU)
    # On its own it is what it says.
    with pytest.raises(ValueError, match=message):
        within_memory(Portion(limit=1), 4, work, device=CPU)


class Held:
    """Stands for a large tensor."""


def test_a_failed_try_holds_nothing_when_the_next_begins() -> None:
    held: list[weakref.ref[Held]] = []

    def work(sizes: list[int]) -> None:
        assert all(ref() is None for ref in held)
        mine = Held()
        held.append(weakref.ref(mine))
        if max(sizes) > 1:
            run_out()

    gc.disable()
    try:
        within_memory(Portion(), 8, work, device=CPU)
        assert len(held) == 4 and all(ref() is None for ref in held)
    finally:
        gc.enable()
