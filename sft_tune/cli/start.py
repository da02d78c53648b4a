"""`sft-tune start`: run a study, from its start or from where it stands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from sft_tune.cli.advise import print_briefly
from sft_tune.cli.lookup import options_of, standings_of
from sft_tune.cli.options import AcceptChanges, FileStorage, StudyFile, TotalHours, TotalTrials
from sft_tune.cli.output import console
from sft_tune.cli.stopping import EXIT_CODE, Stopping, say_at_once
from sft_tune.session import forward_to, open_database, quiet_optuna, watching, with_budget

if TYPE_CHECKING:
    from pathlib import Path

    from sft_tune.run.dispatcher import Dispatcher
    from sft_tune.run.study import Ended
    from sft_tune.spec.load import LoadedStudy
    from sft_tune.store.database import Database


def start(
    file: StudyFile,
    storage: FileStorage = None,
    trials: TotalTrials = None,
    hours: TotalHours = None,
    accept_changes: AcceptChanges = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines, in place of the live screen.")
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            show_default=False,
            help="Ray cluster to join (`engine: ray`). Default: RAY_ADDRESS, else a local one.",
        ),
    ] = None,
) -> None:
    """Run a study until its budget is used, or go on with it.

    Ctrl-C stops it after a checkpoint (exit code 130), a second one at once; SIGTERM stops it
    within the time of grace (143). `sft-tune stop` does it from another shell.

    Example: sft-tune start studies/quickstart.yaml --trials 40
    """
    from sft_tune.run.slots import warm_up
    from sft_tune.spec.load import load_study

    loaded = with_budget(load_study(file), trials=trials, hours=hours)
    warm_up(loaded.spec)  # seconds, while the database is opened here
    with open_database(storage or loaded.spec.storage.url, create=True) as db:
        stopping = Stopping()
        ended = _run(
            loaded,
            db,
            stopping,
            accept_changes=accept_changes,
            plain=plain,
            ray_address=ray_address,
        )
        if ended.why in ("stopped", "aborted"):
            given = (("--trials", trials), ("--hours", hours))
            again = "".join(f" {name} {n}" for name, n in given if n is not None)
            _say_stopped(loaded, db, f"{file}{again}")
            raise typer.Exit(stopping.exit_code or EXIT_CODE)
        _say_ended(loaded, db, ended, file)
        if loaded.spec.confirm is not None and ended.why != "elsewhere":
            _confirm(loaded, db, stopping, ray_address)


def _confirm(
    loaded: LoadedStudy, db: Database, stopping: Stopping, ray_address: str | None
) -> None:
    """Confirm the study as its file asks for, where anything has completed."""
    from sft_tune.cli.confirm import STOPPED, asked, print_standings, run_confirm
    from sft_tune.store.reads import best_row
    from sft_tune.store.records import find_study

    record = find_study(db, loaded.spec.name)
    if best_row(db, record.name) is None:
        return
    print()
    wanted = asked(record, None, None)
    why = run_confirm(record, db, wanted, stopping, stream=sys.stdout, ray_address=ray_address)
    print_standings(standings_of(db, record.name))
    if why in STOPPED:
        raise typer.Exit(stopping.exit_code or EXIT_CODE)


def _run(
    loaded: LoadedStudy,
    db: Database,
    stopping: Stopping,
    *,
    accept_changes: bool,
    plain: bool,
    ray_address: str | None,
) -> Ended:
    from sft_tune.run.study import start_study

    try:
        with (
            quiet_optuna(),
            stopping,
            watching(loaded.spec, db, plain=plain) as watcher,
        ):

            def attach(dispatcher: Dispatcher) -> None:
                stopping.attach(
                    dispatcher.stop, dispatcher.abort, watcher.stopping, dispatcher.terminate
                )

            return start_study(
                loaded,
                db,
                notify=forward_to(watcher),
                accept_changes=accept_changes,
                on_dispatcher=attach,
                ray_address=ray_address,
            )
    except KeyboardInterrupt:
        # Only before there is a dispatcher to stop: from then on, signals call it.
        say_at_once("interrupted: nothing was started")
        raise typer.Exit(stopping.exit_code or EXIT_CODE) from None


def _say_stopped(loaded: LoadedStudy, db: Database, asked: str) -> None:
    from sft_tune.store.reads import study_row
    from sft_tune.view.tables import done_of

    row = study_row(db, loaded.spec.name)
    of = f" of {row.max_trials}" if row.max_trials else ""
    best = f", `sft-tune best {row.name}{options_of(db)}` has the best so far"
    print(
        f"stopped after {done_of(row)}{of} trials; `sft-tune start {asked}{options_of(db)}` goes on"
        + ("" if row.best is None else best)
    )


RAISE = {
    "trials": "its trials are used; `{start} --trials N` with a larger total goes on",
    "fewer": "{asked} is fewer than the {has} trials it has; "
    "`{start} --trials N` with a larger total goes on",
    "hours": "its hours are used; `{start} --hours H` with a larger total goes on",
    "target": "its target is reached; `{start}` goes on once budget.target of the file is higher",
}


def _say_ended(loaded: LoadedStudy, db: Database, ended: Ended, file: Path) -> None:
    from sft_tune.store.reads import study_row, trial_rows
    from sft_tune.store.records import find_study
    from sft_tune.view import words
    from sft_tune.view.summary import draw_summary, summarize

    name = loaded.spec.name
    row = study_row(db, name)
    if ended.why == "elsewhere":
        print(
            f"every trial that study {name} has left is being run by others; "
            f"`sft-tune status {name}{options_of(db)}` shows them"
        )
        return
    if running := row.states.get("RUNNING", 0):
        print(f"{words.plural(running, 'trial')} of it still run under another `start`")
    why = row.ended if ended.why == "finished" else ended.why
    if ended.why == "finished" or why != "trials":
        asked = loaded.spec.budget.trials
        fewer = asked is not None and asked < row.trials and why != "target"
        reason = "fewer" if fewer else why if why in RAISE else "trials"
        what = RAISE[reason or "trials"].format(
            start=f"sft-tune start {file}{options_of(db)}", asked=asked, has=row.trials
        )
        print(f"study {name} is finished: {what}\n")
    examples = find_study(db, name).facts.get("examples", {}).get("validation")
    rows, seconds = trial_rows(db, name), row.active_seconds or 0.0
    summary = summarize(loaded.spec, rows, seconds, examples, standings_of(db, name))
    console().print(draw_summary(summary, options_of(db)))
    print_briefly(db, name)
