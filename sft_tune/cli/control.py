"""`sft-tune stop`, `pause` and `resume`: through the database, whoever runs the study."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from sft_tune.cli.lookup import living
from sft_tune.cli.options import Storage, StudyName
from sft_tune.errors import StudyNotFoundError
from sft_tune.session import open_database


def stop(
    study: StudyName,
    trial: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, show_default=False, help="End this trial only, where it is."
        ),
    ] = None,
    storage: Storage = None,
) -> None:
    """Stop a study wherever it runs, after checkpoints; `start` or `submit` goes on.

    With --trial, one running trial ends for good where it is; the study goes on.

    Example: sft-tune stop my-study --trial 7
    """
    from sft_tune.store import control
    from sft_tune.store.tables import STOPPED

    if trial is None:
        _want(study, storage, STOPPED, "saves its trials and stops", "is stopped")
        return
    with open_database(storage, create=True) as db:
        from sft_tune.store.records import find_study

        if not control.stop_trial(db, find_study(db, study).id, trial):
            raise StudyNotFoundError(
                f"study {study!r} has no running trial {trial}; `sft-tune trials {study}` shows all"
            )
    print(f"trial {trial} of study {study} is told to end")


def pause(study: StudyName, storage: Storage = None) -> None:
    """Pause a study: its trials are saved, and its runners wait until `resume`.

    Example: sft-tune pause my-study
    """
    from sft_tune.store.tables import PAUSED

    _want(study, storage, PAUSED, "saves its trials and waits", "is paused")


def resume(study: StudyName, storage: Storage = None) -> None:
    """Let a paused study go on.

    Example: sft-tune resume my-study
    """
    _want(study, storage, None, "goes on", "goes on when a runner serves it")


def _want(study: str, storage: str | None, wanted: str | None, alive: str, else_: str) -> None:
    from sft_tune.store import control
    from sft_tune.store.reads import study_row
    from sft_tune.store.records import find_study

    with open_database(storage, create=True) as db:
        record = find_study(db, study)
        row = living(study_row(db, study))
        running = row.is_running(time.time())
        over = row.ended is not None and not running
        # What is asked for later, `enqueue` say, would wait for a `resume` that nobody thinks of.
        if wanted is None or not over:
            control.want(db, record.id, wanted)
    if over:
        print(f"study {study} is finished; nothing of it runs or waits")
    else:
        print(f"study {study} {alive if running else else_}")
