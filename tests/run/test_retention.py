from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_tune.run.retention import surplus


@pytest.mark.parametrize(
    ("values", "keep", "maximize", "expected"),
    [
        ([], 1, True, []),
        ([(0, 0.5), (1, 0.7)], 2, True, []),
        ([(0, 0.5), (1, 0.7), (2, 0.6)], 2, True, [0]),
        ([(0, 0.5), (1, 0.7), (2, 0.6)], 2, False, [1]),
        ([(0, 0.5), (1, 0.5)], 1, True, [1]),
    ],
)
def test_the_best_stay(
    values: list[tuple[int, float]], keep: int, maximize: bool, expected: list[int]
) -> None:
    assert surplus(values, keep, maximize=maximize) == expected


@given(st.lists(st.floats(-1, 1), max_size=8), st.integers(1, 9), st.booleans())
def test_what_stays_is_never_worse_than_what_goes(
    values: list[float], keep: int, maximize: bool
) -> None:
    goes = set(surplus(enumerate(values), keep, maximize=maximize))
    stays = [v for number, v in enumerate(values) if number not in goes]
    assert len(stays) == min(keep, len(values))
    for number in goes:
        assert all(v >= values[number] if maximize else v <= values[number] for v in stays)
