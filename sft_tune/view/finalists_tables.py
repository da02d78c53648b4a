"""Finalists over fresh seeds as tables of text and as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_tune.store.finalist_rows import FinalistRow
from sft_tune.view import words
from sft_tune.view.finalists import Finalist, Standings
from sft_tune.view.finalists_words import in_words
from sft_tune.view.statistics import Interval
from sft_tune.view.tables import plain_table

DIFFERENCES = ("trial", "to the leader", "to the default", "search", "luck")
"""The columns of `difference_cells`."""


def draw_standings(found: Standings) -> RenderableType:
    """Return the finalists as two tables, and below them what they say in words."""
    title = f"{found.study}: {found.metric} over fresh seeds, mean and 95 % interval"
    parts: list[RenderableType] = [
        Text(title, "bold"),
        _table(found, score_titles(found), score_cells(found)),
        "",
        Text("differences on validation, seed by seed", "bold"),
        _table(found, DIFFERENCES, difference_cells(found)),
        "",
    ]
    parts += [Text(line) for line in in_words(found)]
    return Group(*parts)


def _table(found: Standings, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table whose cells are never cut: 80 columns hold half of what there is."""
    table = plain_table()
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for one, cells in zip(found.finalists, rows, strict=True):
        table.add_row(*cells, style="bold" if one is found.leader else "")
    return table


def score_titles(found: Standings) -> tuple[str, ...]:
    """Return the columns of `score_cells`."""
    return ("trial", "seeds", "validation", *(["test"] if found.has_test else []), "best")


def score_cells(found: Standings) -> list[list[str]]:
    """Return a row of text a finalist: seeds, means with intervals, chance of being the best."""
    return [
        [
            _named(one),
            str(one.validation.n),
            words.plus_minus(one.validation),
            *([words.plus_minus(one.test)] if found.has_test else []),
            words.chance(one.chance),
        ]
        for one in found.finalists
    ]


def difference_cells(found: Standings) -> list[list[str]]:
    """Return a row of text a finalist: paired differences on validation, search score, luck."""
    return [
        [
            _named(one),
            words.signed(one.to_leader),
            words.signed(one.to_default),
            words.score(one.search),
            words.NOTHING if one.luck is None else words.gain(one.luck.mean),
        ]
        for one in found.finalists
    ]


def _named(one: Finalist) -> str:
    return f"{one.number} (default)" if one.is_default else str(one.number)


def standings_json(found: Standings | None) -> dict[str, Any] | None:
    """Return the standings as plain values; intervals as mappings."""
    if found is None:
        return None
    return {
        "study": found.study,
        "metric": found.metric,
        "confirmed": found.confirmed,
        "leader": found.leader.number,
        "search_winner": found.winner,
        "runs_ended": found.ended,
        "runs_open": found.open,
        "has_test": found.has_test,
        "finalists": [finalist_record(one) for one in found.finalists],
    }


def finalist_record(one: Finalist) -> dict[str, Any]:
    """Return a finalist as plain values."""
    return {
        name: value._asdict() if isinstance(value, Interval) else value
        for name, value in one._asdict().items()
    }


def run_records(found: Sequence[FinalistRow]) -> list[dict[str, Any]]:
    """Return a flat record a confirmation run; metrics with the split that they are of."""
    validation = list(dict.fromkeys(name for run in found for name in run.metrics))
    held_out = list(dict.fromkeys(name for run in found for name in run.test_metrics))
    plain = [f for f in FinalistRow._fields if f not in ("metrics", "test_metrics", "error")]
    return [
        {
            **{name: getattr(run, name) for name in plain},
            **{f"validation_{name}": run.metrics.get(name) for name in validation},
            **{f"test_{name}": run.test_metrics.get(name) for name in held_out},
        }
        for run in found
    ]
