from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sft_tune.spec.space import Parameter, Space, grid_cells, in_order, is_active


def parameter(raw: Any) -> Parameter:
    return Parameter.model_validate(raw)


@pytest.mark.parametrize(
    ("raw", "inside", "outside"),
    [
        (["a", "b"], ["a"], ["c", 0, None]),
        ([1, 2], [1, 2.0], [True, 3, "1"]),
        ([None, 0.5], [None, 0.5], [0, False]),
        ({"low": 1, "high": 5}, [1, 5, 3.0], [0, 6, 2.5, "3", True, None]),
        ({"low": 1, "high": 5, "step": 2}, [1, 3, 5], [2, 4]),
        ({"low": 0.0, "high": 0.3, "step": 0.1}, [0.1, 0.2, 0.3], [0.15, 0.4]),
        ({"low": 1e-5, "high": 1e-3, "log": True}, [1e-5, 1e-4, 1e-3], [1e-6, 1]),
    ],
)
def test_a_parameter_knows_what_a_sampler_could_draw(
    raw: Any, inside: list[Any], outside: list[Any]
) -> None:
    assert all(parameter(raw).contains(value) for value in inside)
    assert not any(parameter(raw).contains(value) for value in outside)


@pytest.mark.parametrize(
    ("raw", "value", "nearest"),
    [
        (["a", "b"], "b", "b"),
        (["a", "b"], "c", "a"),
        ([1, 4, 8], 6.5, 8),
        ([1, 4, 8], "x", 1),
        ([None, 2.0], 7, 2.0),
        ({"low": 1, "high": 5}, 9, 5),
        ({"low": 1, "high": 5}, 2.6, 3),
        ({"low": 1, "high": 6, "step": 2}, 6, 5),
        ({"low": 0.0, "high": 0.3, "step": 0.1}, 1, 0.3),
        ({"low": 0.1, "high": 0.5}, 0, 0.1),
        ({"low": 0.1, "high": 0.5}, "x", 0.1),
        ({"low": 0.1, "high": 0.5}, None, 0.1),
    ],
)
def test_the_nearest_value_is_one_of_the_space(raw: Any, value: Any, nearest: Any) -> None:
    found = parameter(raw).nearest(value)
    assert found == nearest
    assert parameter(raw).contains(found)


numbers = st.integers(-50, 50) | st.floats(-50, 50)


@settings(deadline=None, derandomize=True)
@given(numbers, numbers, st.none() | st.floats(0.01, 20), numbers)
def test_the_nearest_value_of_any_range_lies_in_it(
    one: float, other: float, step: float | None, value: float
) -> None:
    whole = parameter({"low": min(one, other), "high": max(one, other), "step": step})
    nearest = whole.nearest(value)
    assert whole.contains(nearest)


@pytest.mark.parametrize(
    ("raw", "cells"),
    [
        (["a", None], ("a", None)),
        ({"low": 1, "high": 4}, (1, 2, 3, 4)),
        ({"low": 1, "high": 6, "step": 2}, (1, 3, 5)),
        ({"low": 0.0, "high": 0.3, "step": 0.1}, (0.0, 0.1, 0.2, 0.3)),
        ({"low": 0.0, "high": 1.0, "points": 3}, (0.0, 0.5, 1.0)),
        ({"low": 1e-4, "high": 1e-2, "log": True, "points": 3}, (1e-4, 1e-3, 1e-2)),
        ({"low": 8, "high": 64, "log": True, "points": 4}, (8, 16, 32, 64)),
        ({"low": 1, "high": 3, "points": 9}, (1, 2, 3)),
        ({"low": 0.5, "high": 1.0, "points": 1}, (0.5,)),
    ],
)
def test_a_grid_tries_these_values(raw: Any, cells: tuple[Any, ...]) -> None:
    assert parameter(raw).grid_values() == cells


def test_a_real_range_has_no_grid_without_points_or_step() -> None:
    with pytest.raises(ValueError, match="needs `points`"):
        parameter({"low": 0.0, "high": 1.0}).grid_values()


@pytest.mark.parametrize(
    "raw",
    [
        [],
        [1, 1.0],
        [1, True],
        ["a", "a"],
        {"low": 1},
        {"values": [1], "log": True},
        {"low": 2, "high": 1},
        {"low": 0, "high": 1, "log": True},
        {"low": 0.1, "high": 1, "log": True, "step": 0.1},
        {"low": float("nan"), "high": 1},
    ],
)
def test_an_impossible_parameter_is_refused(raw: Any) -> None:
    with pytest.raises(ValidationError):
        parameter(raw)


SPACE: Space = {
    "decay_factor": parameter({"values": [0.5, 0.9], "when": {"schedule": "exponential"}}),
    "schedule": parameter({"values": ["linear", "exponential"], "when": {"epochs": [2, 3]}}),
    "epochs": parameter({"low": 1, "high": 2}),
}


def test_conditions_come_before_what_they_decide() -> None:
    assert in_order(SPACE) == ["epochs", "schedule", "decay_factor"]


def test_conditions_in_a_circle_have_no_order() -> None:
    circle = {
        "a": parameter({"values": [1], "when": {"b": 1}}),
        "b": parameter({"values": [1], "when": {"a": 1}}),
    }
    with pytest.raises(ValueError, match="a, b refers to itself"):
        in_order(circle)


def test_a_parameter_is_active_when_all_its_conditions_hold() -> None:
    assert is_active(SPACE["decay_factor"], {"schedule": "exponential"})
    assert not is_active(SPACE["decay_factor"], {"schedule": "linear"})
    assert not is_active(SPACE["decay_factor"], {})
    assert is_active(SPACE["epochs"], {})


def test_a_grid_has_each_reachable_cell_once() -> None:
    cells = list(grid_cells(SPACE))
    assert cells == [
        {"epochs": 1},
        {"epochs": 2, "schedule": "linear"},
        {"epochs": 2, "schedule": "exponential", "decay_factor": 0.5},
        {"epochs": 2, "schedule": "exponential", "decay_factor": 0.9},
    ]


def test_a_grid_without_conditions_is_the_product() -> None:
    space = {"a": parameter([1, 2]), "b": parameter(["x", "y", "z"])}
    cells = [tuple(cell.items()) for cell in grid_cells(space)]
    assert len(cells) == len(set(cells)) == 6
    assert list(grid_cells({})) == [{}]
