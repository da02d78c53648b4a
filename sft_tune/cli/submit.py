"""`sft-tune submit`: register a study for workers to serve."""

from __future__ import annotations

from typing import Annotated

import typer

from sft_tune.cli.lookup import options_of
from sft_tune.cli.options import AcceptChanges, FileStorage, StudyFile, TotalHours, TotalTrials
from sft_tune.session import open_database, quiet_optuna, with_budget


def submit(
    file: StudyFile,
    storage: FileStorage = None,
    priority: Annotated[
        int | None,
        typer.Option(
            metavar="P", show_default=False, help="Workers prefer higher ones. Default: 0."
        ),
    ] = None,
    trials: TotalTrials = None,
    hours: TotalHours = None,
    no_check: Annotated[
        bool,
        typer.Option("--no-check", help="Do not load data and models here (they are elsewhere)."),
    ] = False,
    accept_changes: AcceptChanges = False,
) -> None:
    """Register a study, for `sft-tune worker` on any machine to run.

    Example: sft-tune submit study.yaml --storage postgresql://me@db/tuning --priority 1
    """
    from sft_tune.run.study import submit_study
    from sft_tune.spec.load import load_study
    from sft_tune.store.urls import redact

    loaded = with_budget(load_study(file), trials=trials, hours=hours)
    with open_database(storage or loaded.spec.storage.url, create=True) as db, quiet_optuna():
        continued = submit_study(
            loaded,
            db,
            accept_changes=accept_changes,
            check=not no_check,
            priority=priority,
        )
        where, options = redact(db.url), options_of(db)
    name = loaded.spec.name
    print(f"study {name} {'goes on' if continued else 'is registered'} in {where}")
    print(f"next  sft-tune worker{options}   on any machine that reaches it")
    print(f"      sft-tune status {name}{options}")
