"""A comparison of studies as records, as tables of text, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from sft_tune.view import words
from sft_tune.view.contest import Contest, Entrant
from sft_tune.view.contest_cost import AXES
from sft_tune.view.finalists_tables import finalist_record
from sft_tune.view.tables import plain_table

OF = {"trials": "trials", "seconds": "time on the device", "wall": "time in which trials ran"}
"""What a budget is of, in words, by axis."""


class Cells(NamedTuple):
    """A table of text: what it is, its columns, its rows, and how to read it.

    Attributes:
        heading: what it is.
        titles: of the columns.
        rows: their cells.
        note: how to read it; may be empty.
        wrapped: whether long cells may take several lines.
    """

    heading: str
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    wrapped: bool = False


def study_records(found: Contest) -> list[dict[str, Any]]:
    """Return a record a study: what it took, what it found, and what with the same budget."""
    records = []
    for entrant in found.entrants:
        spent, best = entrant.spent, entrant.material.best
        records.append(
            {
                "study": entrant.label,
                "search": entrant.searcher,
                "trials": spent.trials,
                "completed": sum(row.state == "COMPLETE" for row in entrant.material.trials),
                "device_seconds": spent.seconds,
                "wall_seconds": spent.wall,
                "best": None if best is None else best.value,
                "best_trial": None if best is None else best.number,
                **{f"best_at_same_{axis}": entrant.at_same[axis] for axis in AXES},
            }
        )
    return records


def step_records(found: Contest) -> list[dict[str, Any]]:
    """Return a record a trial that ended: what the study had spent and found by then."""
    return [
        {
            "study": entrant.label,
            "trials": step.trials,
            "device_seconds": step.seconds,
            "wall_seconds": step.wall,
            "best": step.best,
        }
        for entrant in found.entrants
        for step in entrant.steps
    ]


def chance_records(found: Contest) -> list[dict[str, Any]]:
    """Return a record for each study and part of the same budget."""
    return [
        {"study": entrant.label, **chance._asdict()}
        for entrant in found.entrants
        for chance in entrant.chances
    ]


def finalist_records(found: Contest) -> list[dict[str, Any]]:
    """Return a record for each study that has finalists: its best trial over fresh seeds."""
    return [
        {
            "study": entrant.label,
            **finalist_record(entrant.confirmed),
            "to_first": None if difference is None else difference._asdict(),
        }
        for entrant, difference in zip(found.entrants, found.differences, strict=True)
        if entrant.confirmed is not None
    ]


def contest_json(found: Contest) -> dict[str, Any]:
    """Return the comparison as plain values."""
    return {
        "metric": found.metric,
        "maximize": found.maximize,
        "same": dict(found.same),
        "measure": found.measure,
        "other_data": list(found.other_data),
        "within_noise": found.close,
        "studies": study_records(found),
        "shares": chance_records(found),
        "winners_differ_in": {
            name: dict(zip([e.label for e in found.entrants], values, strict=True))
            for name, values in found.differing.items()
        },
        "confirmed": finalist_records(found),
        "steps": step_records(found),
    }


def tables(found: Contest) -> list[Cells]:
    """Return everything that a comparison tabulates; a table without rows is left out."""
    every = (_studies(found), _same(found), _chances(found), _winners(found), _finalists(found))
    return [table for table in every if table.rows]


def _studies(found: Contest) -> Cells:
    rows = []
    for entrant in found.entrants:
        spent, best = entrant.spent, entrant.material.best
        rows.append(
            (
                entrant.label,
                words.score(None if best is None else best.value),
                str(spent.trials),
                words.duration(spent.seconds),
                words.duration(spent.wall),
                entrant.searcher or words.NOTHING,
            )
        )
    titles = ("study", f"best {found.metric}", "trials", "device", "wall", "search")
    return Cells("What was spent and found", titles, tuple(rows))


def _same(found: Contest) -> Cells:
    """Tabulate the best value of each study when it had spent what the smallest had in all."""
    axes = [axis for axis in AXES if found.same[axis]]
    rows = [
        (entrant.label, *(words.score(entrant.at_same[axis]) for axis in axes))
        for entrant in found.entrants
    ]
    titles = ("study", *(amount(axis, found.same[axis]) for axis in axes))
    return Cells("Best with the same budget", titles, tuple(rows))


def amount(axis: str, value: float | None) -> str:
    """Return so much of a budget in words: ``40 trials``, ``3m 10s device``."""
    if axis == "trials":
        return words.plural(int(value or 0), "trial")
    return f"{words.duration(value)} {'device' if axis == 'seconds' else 'wall'}"


def _chances(found: Contest) -> Cells:
    rows = []
    for entrant in found.entrants:
        for one in entrant.chances:
            rows.append(
                (
                    entrant.label + ("*" if entrant.guided else ""),
                    f"{one.share:.0%}",
                    str(one.trials),
                    words.score(one.found),
                    words.score(one.expected),
                    f"{words.score(one.low)} to {words.score(one.high)}",
                )
            )
    of = amount(found.measure, found.same[found.measure])
    titles = ("study", "part", "trials", "found", "any order", "95 % of orders")
    return Cells(f"With a part of the same budget ({of})", titles, tuple(rows), _orders(found))


def _winners(found: Contest) -> Cells:
    rows = [(name, *_told_apart(values)) for name, values in found.differing.items()]
    titles = ("", *(_best_of(entrant) for entrant in found.entrants))
    return Cells("Where the best configurations differ", titles, tuple(rows), wrapped=True)


def _told_apart(values: Sequence[Any]) -> list[str]:
    """Return settings that differ in short; of paths that end alike the whole."""
    short = [words.NOTHING if v is None else words.setting(v) for v in values]
    return short if len(set(short)) > 1 else [str(v) for v in values]


def _best_of(entrant: Entrant) -> str:
    best = entrant.material.best
    return entrant.label if best is None else f"{entrant.label} {best.number}"


def _finalists(found: Contest) -> Cells:
    rows = []
    for entrant, difference in zip(found.entrants, found.differences, strict=True):
        one = entrant.confirmed
        if one is not None:
            rows.append(
                (
                    f"{entrant.label} {one.number}",
                    words.plus_minus(one.validation),
                    words.plus_minus(one.test),
                    words.signed(difference),
                    words.score(one.search),
                    str(one.validation.n),
                )
            )
    titles = ("trial", "validation", "test", "to the first, validation", "search", "seeds")
    return Cells("Over fresh seeds, mean and 95 % interval", titles, tuple(rows))


def in_words(found: Contest) -> list[str]:
    """Return what the comparison says, a sentence or two a line."""
    return [line for line in (_lead(found), _noise(found)) if line]


def _lead(found: Contest) -> str:
    leaders = found.leaders
    spent = amount(found.measure, found.same[found.measure])
    if not leaders:
        return f"With the same budget ({spent}) no study has completed a trial yet."
    best = words.score(leaders[0].at_same[found.measure])
    told = f"With the same budget ({spent}) "
    if len(leaders) == len(found.entrants):
        return f"{told}all found {found.metric} {best}."
    names = " and ".join(entrant.label for entrant in leaders)
    others = ", ".join(
        f"{e.label} {words.score(e.at_same[found.measure])}"
        for e in found.entrants
        if e not in leaders
    )
    return f"{told}{names} found {found.metric} {best}; {others}."


def _noise(found: Contest) -> str:
    if found.other_data:
        keys = ", ".join(f"data.{key}" for key in found.other_data)
        return (
            f"They do not name the same data ({keys}): the values are of different examples, and "
            "their difference says nothing about the searches."
        )
    if found.close is None:
        return ""
    if found.close:
        return (
            "The two best values of all differ by no more than chance explains on that many "
            "validation examples (95 %): neither study is shown to be the better one."
        )
    return "The two best values of all differ by more than chance explains (95 %)."


def _orders(found: Contest) -> str:
    if not any(entrant.chances for entrant in found.entrants):
        return ""
    told = (
        "found: the best after so many trials, in the order that happened; any order: the mean "
        "over all orders of the trials (after Dodge et al. 2019)."
    )
    if any(entrant.guided for entrant in found.entrants):
        told += (
            " * Later trials of this sampler learned from earlier ones, so that another order "
            "would have found less than these say."
        )
    return told


def draw_tables(heads: Sequence[Cells], lines: Sequence[str]) -> RenderableType:
    """Return tables of text one below the other, and below them ``lines`` of words."""
    parts: list[RenderableType] = []
    for cells in heads:
        table = plain_table()
        for place, title in enumerate(cells.titles):
            table.add_column(title, justify="left" if place == 0 else "right", overflow="fold")
        for row in cells.rows:
            table.add_row(*(Text(cell) for cell in row))
        note = [Text(cells.note, "dim")] if cells.note else []
        parts += [Text(cells.heading, "bold"), table, *note, ""]
    return Group(*parts, *(Text(line) for line in lines))
