from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from sft_tune.view.plots.rows import (
    BEST,
    COMPLETED,
    DEFAULT,
    OTHER,
    PRUNED,
    RUNNING,
    comparison,
    cost,
    curves,
    history,
    kinds,
    timeline,
)
from tests.view.examples import DEFAULT as DEFAULT_POINT
from tests.view.examples import NOW, pruned_row, running_row, trial_row
from tests.view.materials import START, curve, material

INF = math.inf


def default_row(value: float = 0.5, **changes: Any) -> Any:
    return trial_row(0, value, params=DEFAULT_POINT, **changes)


def test_each_trial_is_of_one_kind() -> None:
    rows = [
        default_row(),
        pruned_row(1),
        trial_row(2, 0.9),
        trial_row(3, 0.7),
        pruned_row(4, reason="diverged"),
        trial_row(5, None, state="FAIL", reason="crashed"),
        running_row(6),
    ]
    assert kinds(material(rows)) == {
        0: DEFAULT,
        1: PRUNED,
        2: BEST,
        3: COMPLETED,
        4: OTHER,
        5: OTHER,
        6: RUNNING,
    }


def test_the_best_so_far_is_of_completed_trials_and_of_finite_values() -> None:
    rows = [
        default_row(0.5),
        pruned_row(1, value=0.95),
        trial_row(2, math.nan),
        trial_row(3, 0.7),
        trial_row(4, INF),
        trial_row(5, 0.6),
        running_row(6),
    ]
    data = history(material(rows))
    assert [(p.number, p.value, p.best) for p in data.points] == [
        (0, 0.5, 0.5),
        (1, 0.95, 0.5),
        (3, 0.7, 0.7),
        (5, 0.6, 0.7),
    ]
    assert (data.default, data.left_out) == (0.5, 2)


def test_the_best_of_a_loss_is_the_least() -> None:
    rows = [trial_row(0, 2.0), trial_row(1, 1.0), trial_row(2, 3.0)]
    data = history(material(rows, direction="minimize", metric="loss"))
    assert [p.best for p in data.points] == [2.0, 1.0, 1.0]
    assert [p.kind for p in data.points] == [COMPLETED, BEST, COMPLETED]


def test_a_study_without_any_trial_has_no_rows() -> None:
    empty = material()
    assert history(empty).points == ()
    assert curves(empty) == ((), 0)
    assert cost(empty) == ()
    assert timeline(empty).bars == ()
    assert comparison(empty) is None


def test_curves_are_of_the_objective_and_skip_what_is_not_finite() -> None:
    rows = [default_row(0.5), trial_row(1, 0.8)]
    data = curves(material(rows, [*curve(0, [0.4, 0.5]), *curve(1, [0.6, math.nan, INF, 0.8])]))
    assert [(c.number, c.kind, c.progress, c.values) for c in data.drawn] == [
        (0, DEFAULT, (50, 100), (0.4, 0.5)),
        (1, BEST, (25, 100), (0.6, 0.8)),
    ]


def test_of_many_curves_the_best_the_default_and_an_even_choice_are_drawn() -> None:
    rows = [default_row(0.0), *(trial_row(n, n / 1000) for n in range(1, 1000))]
    rungs = [rung for row in rows for rung in curve(row.number, [row.value or 0.0])]
    data = curves(material(rows, rungs), most=100)
    numbers = sorted(c.number for c in data.drawn)
    assert (len(numbers), data.total) == (100, 1000)
    assert {0, *range(950, 1000)} <= set(numbers)
    rest = [n for n in numbers if 0 < n < 950]
    gaps = [b - a for a, b in zip(rest, rest[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_the_front_of_cost_is_of_completed_trials_that_nothing_beats() -> None:
    rows = [
        trial_row(0, 0.5, seconds=10.0),
        trial_row(1, 0.9, seconds=30.0),
        trial_row(2, 0.8, seconds=40.0),
        pruned_row(3, value=0.7, seconds=5.0),
        trial_row(4, 0.5, seconds=12.0),
        trial_row(5, 0.9, seconds=0.0, duplicate_of=1, reason="duplicate"),
        trial_row(6, math.nan, seconds=1.0),
    ]
    data = cost(material(rows))
    assert [(p.number, p.front) for p in data] == [
        (0, True),
        (1, True),
        (2, False),
        (3, False),
        (4, False),
    ]


def test_a_trial_of_another_program_costs_its_time_from_start_to_end() -> None:
    row = trial_row(0, 0.5, seconds=None, phase=None, reason=None)
    row = row._replace(started=START, ended=START + timedelta(seconds=42))
    (point,) = cost(material([row], managed=False))
    assert point.seconds == 42.0


def spanned(number: int, start: float, end: float | None, **changes: Any) -> Any:
    row = trial_row(number, number / 10, **changes)
    ended = None if end is None else START + timedelta(seconds=end)
    return row._replace(started=START + timedelta(seconds=start), ended=ended)


def test_trials_at_once_on_a_device_lie_side_by_side() -> None:
    rows = [
        spanned(0, 0, 100),
        spanned(1, 0, 50),
        spanned(2, 50, 100),
        spanned(3, 0, 100, device="cuda:1"),
    ]
    data = timeline(material(rows))
    assert data.lanes == ("CPU of box", "CPU of box #2", "cuda:1 of box")
    assert [(b.number, b.lane, b.start, b.seconds) for b in data.bars] == [
        (0, 0, 0.0, 100.0),
        (1, 1, 0.0, 50.0),
        (3, 2, 0.0, 100.0),
        (2, 1, 50.0, 50.0),
    ]
    assert data.busy == 1.0


def test_idle_time_shows_in_the_timeline() -> None:
    data = timeline(material([spanned(0, 0, 25), spanned(1, 75, 100)]))
    assert data.busy == pytest.approx(0.5)


def test_a_running_trial_lasts_until_now_and_an_abandoned_one_until_its_lease() -> None:
    since = (NOW - START.timestamp()) - 30
    rows = [
        spanned(0, since, None, state="RUNNING", lease_expires=NOW + 60),
        spanned(1, since, None, state="RUNNING", lease_expires=NOW - 10, device="b"),
    ]
    assert [b.seconds for b in timeline(material(rows)).bars] == [30.0, 20.0]


def test_of_very_many_trials_the_last_are_on_the_timeline() -> None:
    data = timeline(material([spanned(n, n, n + 1) for n in range(30)]), most=10)
    assert (len(data.bars), data.total, data.bars[0].number) == (10, 30, 20)


def test_default_and_best_are_compared_by_metric_the_objective_first() -> None:
    before = {"f1_macro": 0.4, "accuracy": 0.5, "loss": 1.0}
    after = {"f1_macro": 0.8, "accuracy": 0.9, "loss": INF}
    rows = [
        default_row(0.5)._replace(metrics_json='{"f1_macro": 0.4, "accuracy": 0.5, "loss": 1.0}'),
        trial_row(1, 0.9)._replace(
            metrics_json='{"f1_macro": 0.8, "accuracy": 0.9, "loss": "Infinity"}'
        ),
    ]
    data = comparison(material(rows))
    assert data is not None
    assert data.numbers == (0, 1)
    assert [tuple(pair) for pair in data.pairs] == [
        (name, before[name], after[name]) for name in ("accuracy", "f1_macro")
    ]
