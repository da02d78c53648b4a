"""`sft-tune trials`: every trial of a study."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sft_tune.cli.lookup import living
from sft_tune.cli.options import AsJson, Storage, StudyName
from sft_tune.cli.output import console, print_json
from sft_tune.errors import UserError
from sft_tune.session import open_database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sft_tune.store.rows import TrialRow

KEYS = ("number", "value", "seconds")


def trials(
    study: StudyName,
    sort: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="Order: number, value (best first), seconds, or the name of a parameter.",
        ),
    ] = "number",
    format_: Annotated[
        Literal["table", "csv", "json"], typer.Option("--format", help="What to print.")
    ] = "table",
    as_json: AsJson = False,
    storage: Storage = None,
) -> None:
    """List the trials of a study.

    Example: sft-tune trials my-study --sort value --format csv > trials.csv
    """
    from sft_tune.store.reads import best_row, study_row, trial_rows

    with open_database(storage) as db:
        found, rows = living(study_row(db, study), trial_rows(db, study))
        rows = ordered(rows, sort, found.direction == "maximize")
        best = best_row(db, study)
    if as_json or format_ == "json":
        from sft_tune.view.records import trial_json

        print_json([trial_json(row) for row in rows])
    elif format_ == "csv":
        from sft_tune.view.records import to_csv, trial_records

        sys.stdout.write(to_csv(trial_records(rows)))
    elif rows:
        from sft_tune.view.tables import trials_table

        out = console()
        out.print(
            trials_table(
                rows,
                out,
                metric=found.metric or "value",
                now=time.time(),
                best=None if best is None else best.number,
            )
        )
    else:
        print(f"no trials yet in study {study}")


def ordered(rows: Sequence[TrialRow], key: str, maximize: bool) -> list[TrialRow]:
    """Return ``rows`` in the order of ``key``; those that have no such value come last.

    Raises:
        UserError: no row has ``key``.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.params))
    if key not in (*KEYS, *names):
        raise UserError(f"--sort: no such key: {key}; use one of {', '.join((*KEYS, *names))}")

    def value_of(row: TrialRow) -> Any:
        return getattr(row, key) if key in KEYS else row.params.get(key)

    def place(row: TrialRow) -> tuple[Any, ...]:
        value = value_of(row)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return (2, 0, row.number)
        if isinstance(value, int | float):
            return (0, -value if key == "value" and maximize else value, row.number)
        return (1, str(value), row.number)

    return sorted(rows, key=place)
