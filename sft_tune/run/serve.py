"""Serve every open study of a database: the roster of `sft-tune worker`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from sft_tune.errors import (
    DataError,
    MissingFunctionError,
    MissingModelError,
    SftTuneError,
    StorageError,
    StudyNotFoundError,
)
from sft_tune.run.calibrate import is_open
from sft_tune.run.desk import Desk
from sft_tune.run.dispatcher import Dispatcher
from sft_tune.run.engine import Engine, Inbox, Worker
from sft_tune.run.events import Event, Notice, Notify
from sft_tune.run.lanes import Lanes, lanes_of
from sft_tune.run.messages import cache_folder
from sft_tune.run.owner import announce, owner_name
from sft_tune.run.retention import working_folder
from sft_tune.run.slots import Slot, warm_up
from sft_tune.run.stacking import STACKED, stack_size
from sft_tune.run.study import make_ledger, measured_slots
from sft_tune.spec.function_task import is_function
from sft_tune.spec.paths import ROOT_VARIABLE
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.store import control, leases, runners
from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord, find_study
from sft_tune.store.retry import retrying

RETRY_SECONDS = 60.0
AT_ONCE = "{count} at once on the CPU, as a measurement finds fastest"
NotifyStudy = Callable[[str, Event], None]


class OpenStudies:
    """The roster of a worker: the open studies of a database, urgent first, fair between equals."""

    def __init__(
        self,
        db: Database,
        notify: NotifyStudy,
        *,
        engine: str = "local",
        only: str | None = None,
        idle_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve the open studies of ``db``.

        Args:
            db: the study database.
            notify: is told what happens, and in which study.
            engine: what places the workers, for `status`.
            only: serve the study of this name alone.
            idle_seconds: end when there was nothing to do for so long; None: never.
            clock: gives seconds, for ``idle_seconds``.
        """
        self._db = db
        self._notify = notify
        self._engine = engine
        self._owner = owner_name()
        self._only = only
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._desks: dict[str, Desk] = {}
        self._priorities: dict[str, int] = {}
        self._refused: dict[str, float] = {}
        """Studies that failed here, and when they are tried again, by the clock."""
        self._idle_since = clock()

    def refresh(self, *, busy: bool = False) -> None:
        """Take up studies that were opened, and leave those that have ended."""
        if busy:
            self._idle_since = self._clock()
        found = retrying(lambda: control.open_studies(self._db))
        self._priorities = {
            name: priority
            for name, priority in found
            if self._only in (None, name)
            and self._clock() >= self._refused.get(name, float("-inf"))
        }
        for name in self._priorities:
            if name not in self._desks:
                self._open(name)
        for name, desk in list(self._desks.items()):
            if name not in self._priorities:
                del self._desks[name]
            elif desk.dry:
                self._close_when_over(name, desk)

    def desks(self, running: Mapping[Desk, int]) -> Sequence[Desk]:
        """Return the studies: by priority, then those of which the least runs here.

        Of equals the one that was served longest ago comes first, so that with one slot they
        take turns.
        """

        def urgency(desk: Desk) -> tuple[int, int, int]:
            name = desk.spec.name
            return (-self._priorities.get(name, 0), running.get(desk, 0), desk.placed)

        return sorted(self._desks.values(), key=urgency)

    def beat(self, slots: Sequence[str]) -> None:
        """Say for `status` that this worker lives."""
        now = time.time()
        announce(self._db, self._owner, engine=self._engine, slots=slots, now=now)

    def over(self) -> str | None:
        """Return ``idle`` when there has been nothing to do for the time given."""
        if self._only is not None and self._only not in self._desks:
            find_study(self._db, self._only)  # raises where it was deleted
        for name, desk in list(self._desks.items()):
            self._close_when_over(name, desk)
        if self._idle_seconds is None:
            return None
        return "idle" if self._clock() - self._idle_since >= self._idle_seconds else None

    def broken(self, desk: Desk, error: SftTuneError) -> None:
        """Leave the study to others: what fails here may work there."""
        self._refuse(desk.spec.name, error)
        self._desks.pop(desk.spec.name, None)

    def _open(self, name: str) -> None:
        try:
            record = find_study(self._db, name)
            working_folder(record.artifacts, cache_folder()).mkdir(parents=True, exist_ok=True)
            if self._engine == "local":
                warm_up(record.spec)
            desk = Desk(record.spec, make_ledger(self._db, record), self._notify_of(name))
            desk.ledger.recover()
        except StudyNotFoundError:
            return
        except (SftTuneError, OSError) as error:
            self._refuse(name, error)
            return
        self._desks[name] = desk
        self._notify(name, Notice(f"serving it from here, priority {self._priorities[name]}"))

    def _refuse(self, name: str, error: Exception) -> None:
        # What its files need may come back: a server, room on a disk.
        # A hub that does not answer may do so in a minute.
        passing = isinstance(error, (MissingModelError, StorageError))
        self._refused[name] = self._clock() + RETRY_SECONDS if passing else float("inf")
        how = "for a minute" if passing else "any more"
        elsewhere = isinstance(error, (DataError, MissingFunctionError, MissingModelError))
        where = f" ({ROOT_VARIABLE} says where its files lie on this machine)" if elsewhere else ""
        self._notify(name, Notice(f"not served from here {how}: {error}{where}"))

    def _close_when_over(self, name: str, desk: Desk) -> None:
        """Write down the end of a study of which nothing is left to do."""
        why = desk.over()
        if why is not None and why != "stopped":
            desk.ledger.close(why)
            self._notify(name, Notice(f"finished: {why}"))
            del self._desks[name]

    def _notify_of(self, name: str) -> Notify:
        return lambda event: self._notify(name, event)


def _is_open(record: StudyRecord, resources: ResourcesSpec) -> bool:
    """Tell whether to measure how many trials of the study ``record`` run at once.

    ``threads_per_trial`` is given to share a machine between workers, each of which would find all
    of it free.
    """
    spec = record.spec
    given = (resources.threads_per_trial, spec.resources.trials_per_device)
    ready = record.ended is None and not is_function(spec.task)
    return ready and is_open(resources) and given == (None, None)


def _as_the_study_says(record: StudyRecord, resources: ResourcesSpec) -> ResourcesSpec:
    """Return ``resources`` with what the study says of the share of a trial."""
    own = record.spec.resources
    said = {name: getattr(own, name) for name in ("memory_per_trial", "threads_per_trial")}
    given = {name: value for name, value in said.items() if value is not None}
    return resources.model_copy(update=given)


def serve(
    db: Database,
    engine: Engine,
    slots: Sequence[Slot],
    inbox: Inbox,
    notify: NotifyStudy,
    *,
    only: str | None = None,
    resources: ResourcesSpec | None = None,
    idle_seconds: float | None = None,
    grace_seconds: float = 25.0,
    on_dispatcher: Callable[[Dispatcher], None] = lambda dispatcher: None,
) -> str:
    """Serve open studies until told to stop, or idle for ``idle_seconds``; return the reason.

    Trials of the study ``only`` train as stacks where `start` would train them so. Those of many
    studies do not: a place in a stack that others are in is none for a trial of another study.
    As many of them run at once on a CPU as `start` would run, where neither ``resources``, from
    which the ``slots`` are, nor the study says how many; what
    the study says of a trial's memory and threads holds.
    """
    roster = OpenStudies(db, notify, engine=engine.name, only=only, idle_seconds=idle_seconds)
    leases.release_all(db, owner_name())  # of an earlier call, which the database ended
    roster.refresh()
    idle: list[Worker] = []
    try:
        count = 1
        if only is not None:
            record = find_study(db, only)
            if resources is not None and _is_open(record, resources):
                resources = _as_the_study_says(record, resources)
                slots = measured_slots(record, engine, inbox, idle, resources)
                notify(only, Notice(AT_ONCE.format(count=len(slots))))
            count = stack_size(record, engine, slots, inbox, idle)
        if only is not None and count > 1:
            notify(only, Notice(STACKED.format(count=count)))
            engine = inbox = Lanes(engine, inbox, idle)
            slots, idle = lanes_of(slots, count), []
        dispatcher = Dispatcher(roster, engine, slots, inbox, idle, grace_seconds)
        on_dispatcher(dispatcher)
        return dispatcher.run()
    finally:
        engine.close()
        runners.leave(db, owner_name())
