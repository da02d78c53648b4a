"""`sft-tune enqueue` and `retry`: trials on top of a study's budget."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sft_tune.cli.options import Storage, StudyName
from sft_tune.errors import UserError
from sft_tune.session import open_database

if TYPE_CHECKING:
    from sft_tune.store.database import Database
    from sft_tune.store.records import StudyRecord


def enqueue(
    study: StudyName,
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...", show_default=False, help="Searched settings; others: default."
        ),
    ],
    storage: Storage = None,
) -> None:
    """Ask for one more configuration: it is tried next, on top of the budget, never pruned.

    Example: sft-tune enqueue my-study learning_rate=3e-5 epochs=4
    """
    from sft_tune.spec.space_rules import point_asked_for
    from sft_tune.store import control
    from sft_tune.store.records import find_study

    given = _values(settings)
    with open_database(storage, create=True) as db:
        record = find_study(db, study)
        point = point_asked_for(record.spec, given)
        control.enqueue(db, record.id, [point], now=time.time())
        shown = ", ".join(f"{name}={value}" for name, value in point.items())
        print(f"asked for: {shown}")
        _say_who(db, record)


def retry(
    study: StudyName,
    failed: Annotated[bool, typer.Option("--failed", help="Every trial that failed.")] = False,
    trial: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, show_default=False, help="This failed trial."),
    ] = None,
    storage: Storage = None,
) -> None:
    """Try failed trials again, as new trials of the same configurations, on top of the budget.

    Example: sft-tune retry my-study --failed
    """
    from sft_tune.store import control
    from sft_tune.store.reads import trial_rows
    from sft_tune.store.records import find_study
    from sft_tune.view import words

    if failed == (trial is not None):
        raise UserError("retry takes either --failed or --trial N; give one of them")
    with open_database(storage, create=True) as db:
        record = find_study(db, study)
        rows = [row for row in trial_rows(db, study) if row.state == "FAIL" and row.params]
        if trial is None:
            rows = [row for row in rows if row.reason != "stopped"]
        else:
            rows = [row for row in rows if row.number == trial]
            if not rows:
                raise UserError(f"trial {trial} of study {study!r} has not failed; nothing to do")
        points = [row.params for row in rows]
        numbers = [row.number for row in rows]
        count = control.enqueue(db, record.id, points, now=time.time(), retry_of=numbers)
        before = f"; {len(rows) - count} were asked for before" if count < len(rows) else ""
        print(f"{words.plural(count, 'failed trial')} to be tried again{before}")
        if count:
            _say_who(db, record)


def _values(settings: list[str]) -> dict[str, Any]:
    from sft_tune.spec.yaml12 import parse

    given = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"enqueue takes KEY=VALUE (got {text}); write {key}=VALUE")
        given[key] = parse(f"value: {value}", "enqueue").data["value"]
    return given


def _say_who(db: Database, record: StudyRecord) -> None:
    from sft_tune.store.reads import study_row
    from sft_tune.store.runners import live_runners

    if wanted := study_row(db, record.name).wanted:
        print(f"study {record.name} is {wanted}: this waits for `sft-tune resume {record.name}`")
    elif not live_runners(db, time.time()):
        print(
            f"nobody serves this database now: `sft-tune start` with its file, or `sft-tune "
            f"worker --study {record.name}`, takes it up"
        )
