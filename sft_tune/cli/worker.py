"""`sft-tune worker`: serve the open studies of a database from this machine."""

from __future__ import annotations

import queue
import time
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sft_tune.cli.options import Storage
from sft_tune.cli.stopping import EXIT_CODE, Stopping, say_at_once
from sft_tune.errors import UserError
from sft_tune.session import forward_to, open_database, quiet_optuna, worker_lines

if TYPE_CHECKING:
    from collections.abc import Callable

    from sft_tune.run.dispatcher import Dispatcher
    from sft_tune.run.events import Event
    from sft_tune.run.serve import NotifyStudy
    from sft_tune.spec.resources import ResourcesSpec
    from sft_tune.store.database import Database
    from sft_tune.view.lines import PlainLines

AWAY_SECONDS = 15
"""Between two tries to reach a database that is away."""


def worker(
    storage: Storage = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="Serve this study only."),
    ] = None,
    idle_minutes: Annotated[
        float | None,
        typer.Option(
            metavar="M", min=0, show_default=False, help="End after so long with nothing to do."
        ),
    ] = None,
    devices: Annotated[
        str, typer.Option(metavar="auto|cpu|0,1", help="GPUs to use, or the CPU.")
    ] = "auto",
    trials_per_device: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default=False, help="Trials at once on each device."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default=False, help="CPU threads of a trial."),
    ] = None,
) -> None:
    """Serve every open study of a database from this machine, the most urgent first.

    Studies come by `submit` or `start`. Ctrl-C or SIGTERM saves the trials and hands them back;
    any other worker goes on with them.

    Example: sft-tune worker --storage postgresql://me@db/tuning --idle-minutes 30
    """
    from sft_tune.run.engine import LocalEngine
    from sft_tune.run.messages import cache_folder
    from sft_tune.run.serve import serve
    from sft_tune.run.slots import find_slots, unused_gpus
    from sft_tune.store.records import find_study
    from sft_tune.store.urls import redact

    resources = _resources(devices, trials_per_device, threads)
    slots = find_slots(resources)
    with open_database(storage, create=True) as db, quiet_optuna(), Stopping() as stopping:
        if study is not None:
            find_study(db, study)

        def attach(dispatcher: Dispatcher) -> None:
            stopping.attach(dispatcher.stop, dispatcher.abort, say_at_once, dispatcher.terminate)

        places = ", ".join(slot.label for slot in slots)
        _say(f"worker on {places}, serving {study or 'every open study'} of {redact(db.url)}")
        if text := unused_gpus(resources):
            _say(text)

        def once() -> str:
            return serve(
                db,
                LocalEngine(Path(cache_folder()) / "workers"),
                slots,
                queue.SimpleQueue(),
                _printing(db),
                only=study,
                resources=resources,
                idle_seconds=None if idle_minutes is None else 60 * idle_minutes,
                on_dispatcher=attach,
            )

        why = whenever_it_answers(once, stopping)
    _say({"idle": "nothing to do any more", "stopped": "stopped"}.get(why, why))
    if why in ("stopped", "aborted"):
        raise typer.Exit(stopping.exit_code or EXIT_CODE)


def _resources(devices: str, per_device: int | None, threads: int | None) -> ResourcesSpec:
    from sft_tune.spec.resources import ResourcesSpec

    given: dict[str, object] = {"devices": devices}
    if devices not in ("auto", "cpu"):
        numbers = devices.split(",")
        if not all(number.strip().isdigit() for number in numbers):
            raise UserError(f"--devices must be auto, cpu, or GPU numbers like 0,1 (got {devices})")
        given["devices"] = tuple(int(number) for number in numbers)
    return ResourcesSpec.model_validate(
        {**given, "trials_per_device": per_device, "threads_per_trial": threads}
    )


def whenever_it_answers(serving: Callable[[], str], stopping: Stopping) -> str:
    """Return what ``serving`` returns, begun anew as long as it ends for a database that is away.

    Who restarts a database must not have to start all workers of a fleet.
    """
    from sft_tune.store.retry import is_transient

    while True:
        try:
            return serving()
        except KeyboardInterrupt:
            return "stopped"
        except Exception as error:
            if not is_transient(error):
                raise
            stopping.detach()
            if stopping.count:
                return "stopped"
            _say(f"{_first_line(error)}; tried again in {AWAY_SECONDS} s, Ctrl-C leaves")
        try:
            time.sleep(AWAY_SECONDS)
        except KeyboardInterrupt:
            return "stopped"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _printing(db: Database) -> NotifyStudy:
    """Return what prints what a person wants in a worker's log, in the words of `start`."""
    from sft_tune.run.events import Notice, TrialStarted

    watchers: dict[str, PlainLines] = {}

    def notify(study: str, event: Event) -> None:
        if isinstance(event, Notice):  # also of studies that cannot be read
            _say(f"{study}: {event.text}")
            return
        known = watchers.get(study)
        extended = known is not None and known.progress.done >= (known.progress.goal.trials or inf)
        if known is None or (extended and isinstance(event, TrialStarted)):
            watchers[study] = worker_lines(study, db)
        forward_to(watchers[study])(event)

    return notify
