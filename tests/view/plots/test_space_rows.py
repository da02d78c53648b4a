from __future__ import annotations

import math
from typing import Any

import pytest

from sft_tune.errors import UserError
from sft_tune.spec.space import Parameter
from sft_tune.store.importances import Importances
from sft_tune.view.plots.space_rows import (
    CHOICES,
    LINEAR,
    LOG,
    axis_of,
    chosen,
    contour,
    parallel,
    slices,
    varied,
)
from sft_tune.view.plots.ticks import tick_marks
from tests.view.examples import pruned_row, trial_row
from tests.view.materials import material

SHARES = Importances((("b", 0.7), ("a", 0.2), ("c", 0.1)), 30)


@pytest.mark.parametrize(
    ("values", "parameter", "scale", "ends"),
    [
        ([0.1, 0.9], None, LINEAR, (0.1, 0.9)),
        ([1e-5, 1e-2], None, LOG, (-5.0, -2.0)),
        ([1e-5, 1e-4], {"low": 1e-6, "high": 1e-3, "log": True}, LOG, (-6.0, -3.0)),
        ([1e-5, 1e-2], {"low": 1e-6, "high": 0.1}, LINEAR, (1e-6, 0.1)),
        ([16, 64], {"values": [16, 32, 64]}, CHOICES, (0.0, 2.0)),
        (["adam", None, True], None, CHOICES, (0.0, 2.0)),
        ([3.0, "x"], None, CHOICES, (0.0, 1.0)),
        ([0.5], None, LINEAR, (0.5, 0.5)),
        ([math.inf, 1.0], None, CHOICES, (0.0, 1.0)),
        ([0, 1000], None, LINEAR, (0.0, 1000.0)),
    ],
)
def test_values_and_space_decide_the_axis(
    values: list[Any], parameter: dict[str, Any] | None, scale: str, ends: tuple[float, float]
) -> None:
    given = None if parameter is None else Parameter.model_validate(parameter)
    axis = axis_of("x", values, given)
    assert axis.scale == scale
    assert (axis.low, axis.high) == pytest.approx(ends)
    for value in values:
        assert axis.low <= axis.place(value) <= axis.high


@pytest.mark.parametrize(
    ("values", "parameter", "marks"),
    [
        ([10, 40], {"low": 10, "high": 40, "step": 10}, "10 20 30 40"),
        ([5, 100], {"low": 5, "high": 100, "step": 5}, "25 50 75 100"),
        ([3, 27], {"low": 3, "high": 27, "step": 8}, "3 11 19 27"),
        ([1, 1000], {"low": 1, "high": 3000}, "500 1000 1500 2000 2500 3000"),
        ([2, 6], None, "2 3 4 5 6"),
        ([0.1, 0.3], {"low": 0.1, "high": 0.4, "step": 0.1}, "0.1 0.2 0.3 0.4"),
        ([0.0, 0.2], {"low": 0, "high": 1}, "0 0.25 0.5 0.75 1"),
    ],
)
def test_marks_of_steps_are_at_values_that_there_are(
    values: list[Any], parameter: dict[str, Any] | None, marks: str
) -> None:
    given = None if parameter is None else Parameter.model_validate(parameter)
    assert " ".join(tick_marks(axis_of("x", values, given))[1]) == marks


def test_choices_keep_the_order_of_the_space_and_unknown_ones_follow() -> None:
    parameter = Parameter.model_validate({"values": ["sgd", "adam"]})
    axis = axis_of("optimizer", ["lion", "adam"], parameter)
    assert axis.choices == ("sgd", "adam", "lion")
    assert axis.place("lion") == 2.0


def rows_of(*points: dict[str, Any]) -> Any:
    return [trial_row(n, 0.5 + n / 100, params=point) for n, point in enumerate(points)]


def test_what_varies_comes_by_importance() -> None:
    rows = rows_of({"a": 1, "b": 1, "c": 1, "d": 7}, {"a": 2, "b": 2, "c": 2, "d": 7})
    assert varied(material(rows, importances=SHARES, managed=False)) == ["b", "a", "c"]


def test_a_hyperparameter_that_is_not_there_is_said() -> None:
    study = material(rows_of({"a": 1}, {"a": 2}), managed=False)
    assert chosen(study, ["a"], 2) == ["a"]
    with pytest.raises(UserError, match="no hyperparameter 'x'; it has a"):
        chosen(study, ["x"], 2)
    with pytest.raises(UserError, match="none of its trials has any yet"):
        chosen(material(managed=False), ["x"], 2)


def test_a_slice_has_the_trials_that_have_the_hyperparameter() -> None:
    rows = rows_of({"a": 1}, {"a": 3, "b": 5.0}, {"a": 2, "b": 6.0})
    rows.append(trial_row(3, math.nan, params={"b": 7.0}))
    rows.append(trial_row(4, 0.1, params={"b": 8.0}, state="FAIL"))
    (part,) = slices(material(rows, managed=False), ["b"])
    assert [(p.number, p.places) for p in part.points] == [(1, (5.0,)), (2, (6.0,))]


def test_of_very_many_points_an_even_choice_is_drawn_with_the_best() -> None:
    rows = [trial_row(n, (n == 7) + 0.0, params={"a": n}) for n in range(7000)]
    (part,) = slices(material(rows, managed=False), ["a"])
    assert (len(part.points), part.total) == (3000, 7000)
    assert [p.number for p in part.points if p.kind == "best"] == [7]


def test_the_surface_of_a_contour_stays_within_what_was_measured() -> None:
    rows = rows_of(*({"a": i % 5, "b": 10.0 ** (i // 5)} for i in range(25)))
    found = contour(material(rows, managed=False), ["a", "b"])
    assert found is not None
    assert (found.axes[0].scale, found.axes[1].scale) == (LINEAR, LOG)
    cells = [z for row in found.surface for z in row]
    assert min(cells) >= 0.5
    assert max(cells) <= 0.74
    # At a trial the surface has its value: the best in the last corner, the first in the first.
    assert found.surface[-1][-1] == pytest.approx(0.74, abs=0.01)
    assert found.surface[0][0] == pytest.approx(0.5, abs=0.01)


def test_a_contour_needs_two_axes_and_its_surface_four_completed_trials() -> None:
    assert contour(material(rows_of({"a": 1}), managed=False), ["a"]) is None
    few = rows_of({"a": 1, "b": 1}, {"a": 2, "b": 2})
    few += [pruned_row(n, params={"a": n, "b": n}) for n in range(2, 9)]
    found = contour(material(few, managed=False), ["a", "b"])
    assert found is not None
    assert (len(found.points), found.surface) == (9, ())


def test_a_contour_of_choices_has_a_cell_for_each() -> None:
    rows = rows_of(*({"a": "xyz"[i % 3], "b": i % 2 == 0} for i in range(6)))
    found = contour(material(rows, managed=False), ["a", "b"])
    assert found is not None
    assert (found.xs, found.ys) == ((0.0, 1.0, 2.0), (0.0, 1.0))
    assert len(found.surface) == 2


def test_lines_of_parallel_coordinates_pass_where_there_is_no_value() -> None:
    rows = rows_of({"a": 1, "b": 0.5}, {"a": 2}, {"a": 1, "b": 1.0})
    data = parallel(material(rows, managed=False))
    assert [axis.name for axis in data.axes] == ["a", "b"]
    assert [(line.number, line.places) for line in data.lines] == [
        (0, (1.0, 0.5)),
        (1, (2.0, None)),
        (2, (1.0, 1.0)),
    ]


def test_the_best_line_is_in_front_whichever_way_is_better() -> None:
    rows = rows_of({"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 3, "b": 3})
    for direction, last in (("maximize", 2), ("minimize", 0)):
        data = parallel(material(rows, managed=False, direction=direction))
        assert data.lines[-1].number == last


def test_of_too_many_lines_those_that_got_furthest_stay() -> None:
    rows = [
        pruned_row(n, value=0.9, params={"a": n, "b": n}, last_progress=10) for n in range(5)
    ] + [trial_row(n, 0.5, params={"a": n, "b": n}) for n in range(5, 8)]
    data = parallel(material(rows, managed=False), most=4)
    assert data.total == 8
    assert {5, 6, 7} < {line.number for line in data.lines}
