"""`sft-tune trials`: every trial of a study."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sft_tune.cli.lookup import living, living_trials
from sft_tune.cli.options import AsJson, Storage, StudyName
from sft_tune.cli.output import check_folder_of, console, json_text
from sft_tune.errors import UserError
from sft_tune.session import open_database

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sft_tune.store.rows import TrialRow

KEYS = ("number", "value", "seconds")
Format = Literal["table", "csv", "json", "parquet"]
ENDINGS: dict[str, Format] = {".csv": "csv", ".json": "json", ".parquet": "parquet"}


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
        Format | None,
        typer.Option(
            "--format",
            show_default=False,
            help="What to print. Default: a table; with --output, by the file's ending.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            show_default=False,
            help="Write to this file: .csv, .json or .parquet.",
        ),
    ] = None,
    as_json: AsJson = False,
    storage: Storage = None,
) -> None:
    """List the trials of a study.

    Example: sft-tune trials my-study --sort value --format csv > trials.csv
    """
    from sft_tune.store.reads import best_row, evaluation_rows, study_row, trial_rows

    kind = "json" if as_json else format_ or _kind_of(output)
    _check_output(kind, output)
    with open_database(storage) as db:
        found = living(study_row(db, study))
        rows = living_trials(found, trial_rows(db, study))
        rows = ordered(rows, sort, found.direction == "maximize")
        best = best_row(db, study)
        open_ = [row.number for row in rows if row.state == "RUNNING"]
        rungs = [r for n in open_ for r in evaluation_rows(db, study, n)] if kind == "table" else []
    if kind != "table":
        _write(_encoded(rows, kind), output)
    elif rows:
        from sft_tune.view.tables import best_so_far, trials_table

        out, metric = console(), found.metric or "value"
        out.print(
            trials_table(
                rows,
                out,
                metric=metric,
                now=time.time(),
                best=None if best is None else best.number,
                so_far=best_so_far(rungs, metric, maximize=found.direction == "maximize"),
            )
        )
    else:
        print(f"no trials yet in study {study}")


def _kind_of(output: Path | None) -> Format:
    """Return what the ending of ``output`` says; a table where nothing is written to a file."""
    if output is None:
        return "table"
    kind = ENDINGS.get(output.suffix.lower())
    if kind is None:
        raise UserError(
            f"--output: the file's ending must be one of {', '.join(ENDINGS)} (got {output.name}); "
            "give --format for another"
        )
    return kind


def _check_output(kind: str, output: Path | None) -> None:
    if kind == "table" and output is not None:
        raise UserError("--output is for csv, json and parquet; give no --format table")
    if kind == "parquet" and output is None and sys.stdout.isatty():
        raise UserError("parquet is not for a terminal; give --output FILE, or redirect to a file")
    if output is not None:
        check_folder_of(output)


def _encoded(rows: Sequence[TrialRow], kind: str) -> bytes:
    from sft_tune.view.records import to_csv, to_parquet, trial_json, trial_records

    if kind == "parquet":
        return to_parquet(trial_records(rows))
    if kind == "csv":
        return to_csv(trial_records(rows)).encode()
    return f"{json_text([trial_json(row) for row in rows])}\n".encode()


def _write(data: bytes, output: Path | None) -> None:
    if output is not None:
        output.write_bytes(data)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


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
