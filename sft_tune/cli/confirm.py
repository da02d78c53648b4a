"""`sft-tune confirm`: is the winner of a search real? Fresh seeds, then the test split."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from sft_tune.cli.lookup import standings_of
from sft_tune.cli.options import AsJson, Storage, StudyName
from sft_tune.cli.output import console, print_json
from sft_tune.cli.stopping import EXIT_CODE, Stopping, say_at_once
from sft_tune.session import open_database, quiet_optuna

if TYPE_CHECKING:
    from sft_tune.run.dispatcher import Dispatcher
    from sft_tune.run.events import Event, TrialEnded
    from sft_tune.spec.search import ConfirmSpec
    from sft_tune.store.database import Database
    from sft_tune.store.records import StudyRecord
    from sft_tune.view.finalists import Standings

STOPPED = ("stopped", "aborted")


def confirm(
    study: StudyName,
    top: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=1,
            show_default=False,
            help="So many of the best trials, and the default. Default: confirm.top, or 3.",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=1000,
            show_default=False,
            help="Fresh seeds for each. Default: confirm.seeds, or 5.",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Show what is known so far, and train nothing.")
    ] = False,
    as_json: AsJson = False,
    storage: Storage = None,
) -> None:
    """Train the best configurations again over fresh seeds, and evaluate them on the test split.

    Says how the finalists stand, how likely the leader is the best of them, and how much of its
    search score was luck. Ctrl-C saves and stops; the same command goes on.

    Example: sft-tune confirm my-study --top 3 --seeds 5
    """
    from sft_tune.store.records import find_study

    stopping = Stopping()
    with open_database(storage, create=not show) as db:
        record = find_study(db, study)
        why = "trials"
        if not show:
            stream = sys.stderr if as_json else sys.stdout
            why = run_confirm(record, db, asked(record, top, seeds), stopping, stream=stream)
        found = standings_of(db, record.name)
    if as_json:
        from sft_tune.view.finalists_tables import standings_json

        print_json(standings_json(found))
    else:
        if found is not None and seeds is not None and not show:
            _say_more_seeds(found, seeds)
        print_standings(found)
    if why in STOPPED:
        raise typer.Exit(stopping.exit_code or EXIT_CODE)


def asked(record: StudyRecord, top: int | None, seeds: int | None) -> ConfirmSpec:
    """Return what to confirm: the options, else the study file's section, else its defaults."""
    from sft_tune.spec.search import ConfirmSpec

    usual = record.spec.confirm or ConfirmSpec()
    return ConfirmSpec(
        top=usual.top if top is None else top, seeds=usual.seeds if seeds is None else seeds
    )


def run_confirm(
    record: StudyRecord,
    db: Database,
    wanted: ConfirmSpec,
    stopping: Stopping,
    *,
    stream: TextIO,
    ray_address: str | None = None,
) -> str:
    """Confirm the study, a line on ``stream`` for each run that ends; return why it ended."""
    from sft_tune.run.confirm import confirm_study

    def attach(dispatcher: Dispatcher) -> None:
        stopping.attach(dispatcher.stop, dispatcher.abort, say_at_once, dispatcher.terminate)

    try:
        with quiet_optuna(), stopping:
            return confirm_study(
                record,
                db,
                wanted,
                notify=_Teller(record, db, stream).tell,
                on_dispatcher=attach,
                ray_address=ray_address,
            )
    except KeyboardInterrupt:
        # Only before there is a dispatcher to stop: from then on, signals call it.
        say_at_once("interrupted; the same command goes on")
        return "aborted"


class _Teller:
    """Writes a line of what a person wants to know: ends and notices, not every rung."""

    def __init__(self, record: StudyRecord, db: Database, stream: TextIO) -> None:
        self._record, self._db, self._stream = record, db, stream
        self._began: float | None = None
        self._here = 0

    def tell(self, event: Event) -> None:
        """Hear what happens."""
        from sft_tune.run.events import Notice, TrialEnded, TrialStarted

        match event:
            case TrialStarted() if self._began is None:
                self._began = time.monotonic()
            case TrialEnded():
                self._write(self._ended(event))
            case Notice():
                self._write(event.text)

    def _ended(self, event: TrialEnded) -> str:
        from sft_tune.store.finalist_rows import finalist_rows
        from sft_tune.view import words

        runs = finalist_rows(self._db, self._record.name)
        ended = sum(run.phase == "ended" for run in runs)
        value = "" if event.value is None else f" with {self._record.metric} {event.value:.4f}"
        note = f", {event.note}" if event.note else ""
        if event.reason == "crashed":
            note += f" (the whole error: sft-tune show {self._record.name} {event.number})"
        self._here += 1
        left = ""
        if self._began is not None and ended < len(runs):
            each = (time.monotonic() - self._began) / self._here
            left = f", about {words.duration(each * (len(runs) - ended))} left"
        return (
            f"trial {event.number} {words.REASONS.get(event.reason, event.reason)}{value}"
            f"{note} in {words.duration(event.seconds)} ({ended} of {len(runs)} runs{left})"
        )

    def _write(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self._stream, flush=True)


def _say_more_seeds(found: Standings, asked_for: int) -> None:
    """Say that there are more seeds than were asked for: none is taken away, and all count."""
    most = max(one.validation.n for one in found.finalists)
    if most > asked_for:
        print(f"--seeds {asked_for}: the finalists have up to {most} seeds already; all count\n")


def print_standings(found: Standings | None) -> None:
    """Print the finalists; of a study without any, what to do."""
    from sft_tune.view.finalists_tables import draw_standings

    if found is None:
        print("no confirmation run has ended with a value yet")
        return
    console().print(draw_standings(found))
