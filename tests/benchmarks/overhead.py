"""The tuner's own cost, for studies of short trials on two CPU workers.

Of the seconds that two slots had (wall seconds times slots), how many were not spent inside a
trial's training and evaluation. What counts as inside is what a trial's rows say (`seconds`: from
the model's making to the trial's end, with evaluation and checkpoints), less the time in which
its worker waited for verdicts, by the worker's own clock. Each slot's clock runs from the end of
its first trial to the end of its last, so that neither the start of the processes nor a slot that
finds nothing left to do is counted; the start is reported apart.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import event

from sft_tune.run.crew import Running
from sft_tune.run.dispatcher import Dispatcher
from sft_tune.run.engine import Worker
from sft_tune.run.events import Event, TrialEnded, TrialStarted
from sft_tune.run.messages import Message
from sft_tune.run.study import start_study
from sft_tune.spec.load import load_study
from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import open_optuna_storage
from tests.benchmarks import Table
from tests.benchmarks.filled import fill

SLOTS = 2
TARGETS = {10: 0.03, 60: 0.01}
"""Seconds of a trial to the share of the tuner that is admitted."""
PLAN = ((10, 22, 0), (10, 22, 2_000), (60, 10, 0))
"""Seconds of a trial, how many, and how many ended ones the study has before."""


@dataclass
class Record:
    """What happened when, by the monotonic clock, and how many SQL statements it took."""

    begun: float
    started: list[float] = field(default_factory=list)
    ended: list[TrialEnded] = field(default_factory=list)
    ended_at: list[float] = field(default_factory=list)
    statements_at: list[int] = field(default_factory=list)
    statements: int = 0
    waited: dict[int, float] = field(default_factory=dict)
    """Seconds that each trial's worker waited for verdicts, by its number."""

    def notify(self, happened: Event) -> None:
        if isinstance(happened, TrialStarted):
            self.started.append(time.monotonic())
        elif isinstance(happened, TrialEnded):
            self.ended.append(happened)
            self.ended_at.append(time.monotonic())
            self.statements_at.append(self.statements)

    def tick(self, *_: Any) -> None:
        self.statements += 1


@dataclass(frozen=True)
class Cost:
    """What one study cost.

    Attributes:
        trials: how many are counted.
        trial_seconds: the median of a trial's own seconds.
        inside: seconds inside trials.
        given: wall seconds times slots.
        waited: seconds that workers waited for verdicts.
        start: seconds from the call to the first trial's start.
        statements: SQL statements a trial.
    """

    trials: int
    trial_seconds: float
    inside: float
    given: float
    waited: float
    start: float
    statements: float

    @property
    def share(self) -> float:
        """Share of the slots' time that the tuner took for itself."""
        return 1 - self.inside / self.given


def run(short: bool) -> Table:
    """Measure trials of 10 and of 60 seconds, and in a large study (``short``: of about 1)."""
    rows, notes, met = [], [], True
    for seconds, trials, before in ((1, 8, 0),) if short else PLAN:
        cost = measure(seconds, trials, before)
        target = TARGETS.get(seconds)
        rows.append(
            (
                f"{cost.trial_seconds:.1f} s",
                str(cost.trials),
                f"{before:,}",
                f"{cost.inside:.1f} s",
                f"{cost.given:.1f} s",
                f"{cost.inside / cost.given:.4f}",
                f"{cost.waited / cost.given:.2%}",
                f"{cost.share:.2%}",
                "-" if target is None else f"{target:.0%}",
                f"{cost.start:.1f} s",
                f"{cost.statements:.0f}",
            )
        )
        if target is not None:
            met = met and cost.share < target
    if not short:
        notes.append("every target met" if met else "A TARGET WAS MISSED")
    columns = ("trial", "n", "before", "inside", "slots x wall", "ratio", "waited", "own cost")
    return Table(
        title=f"builtin:convnet on digits, {SLOTS} workers of 1 thread, 10 rungs a trial, SQLite",
        columns=(*columns, "target", "first start", "SQL a trial"),
        rows=rows,
        notes=["own cost: all that is not inside, and in it what workers waited at rungs", *notes],
        met=None if short else met,
    )


def measure(seconds: int, trials: int, ended: int = 0) -> Cost:
    """Run ``trials`` trials of about ``seconds`` each, in a study that has ``ended`` ones."""
    with tempfile.TemporaryDirectory() as folder:
        before = {name: os.environ.get(name) for name in ("SFT_TUNE_CACHE",)}
        os.environ["SFT_TUNE_CACHE"] = f"{folder}/cache"
        try:
            epochs = _epochs(Path(folder), seconds)
            record = _study(Path(folder) / "measured", epochs, trials, ended)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name)
                else:
                    os.environ[name] = value
    return cost_of(record)


def cost_of(record: Record) -> Cost:
    """Return the cost of all trials but each slot's first.

    A slot is counted from the end of its first trial to that of its last, so that both begin and
    end with an end: what lies between are whole trials, and what the tuner does between them.
    """
    slots: dict[int, list[int]] = {}
    for index, ended in enumerate(record.ended):
        if ended.slot is not None:
            slots.setdefault(ended.slot, []).append(index)
    given = waited = 0.0
    own: list[float] = []
    for mine in slots.values():
        given += record.ended_at[mine[-1]] - record.ended_at[mine[0]]
        waits = [record.waited[record.ended[index].number] for index in mine[1:]]
        waited += sum(waits)
        seconds = [record.ended[index].seconds for index in mine[1:]]
        own += [one - wait for one, wait in zip(seconds, waits, strict=True)]
    first = max(mine[0] for mine in slots.values())
    counted = len(record.ended) - 1 - first
    statements = record.statements_at[-1] - record.statements_at[first]
    return Cost(
        trials=len(own),
        trial_seconds=statistics.median(own),
        inside=sum(own),
        given=given,
        waited=waited,
        start=record.started[0] - record.begun,
        statements=statements / counted,
    )


def _epochs(folder: Path, seconds: int) -> int:
    """Return how many epochs take about ``seconds`` on two workers at once, by a trial run."""
    probed = 20
    record = _study(folder / "probe", probed, 4)
    each = statistics.median(ended.seconds for ended in record.ended[2:]) / probed
    return max(1, round(seconds / each))


def _study(folder: Path, epochs: int, trials: int, ended: int = 0) -> Record:
    folder.mkdir()
    path = folder / "overhead.json"
    path.write_text(json.dumps(_content(epochs, trials + ended)))
    db = Database.open(f"sqlite:///{folder}/overhead.db", create=True)
    try:
        if ended:
            fill(db, load_study(path).spec, ended, artifacts=str(folder / "runs"))
        record = Record(time.monotonic())
        with _waits(record):
            _start(path, db, record)
    finally:
        db.dispose()
    return record


def _start(path: Path, db: Database, record: Record) -> None:
    for engine in (db.engine, open_optuna_storage(db).engine):
        event.listen(engine, "before_cursor_execute", record.tick)
    start_study(load_study(path), db, notify=record.notify)


@contextmanager
def _waits(record: Record) -> Iterator[None]:
    """Note what workers say, with a trial's end, that it waited for verdicts."""
    plain = Dispatcher._finish

    def finish(self: Dispatcher, worker: Worker, running: Running, outcome: Message) -> None:
        record.waited[running.placement.number] = outcome["waited"]
        plain(self, worker, running, outcome)

    Dispatcher._finish = finish  # type: ignore[method-assign]
    try:
        yield
    finally:
        Dispatcher._finish = plain  # type: ignore[method-assign]


def _content(epochs: int, trials: int) -> dict[str, Any]:
    return {
        "name": "overhead",
        "task": "image-classification",
        "data": {"source": "sklearn:digits", "train_limit": 736, "validation_limit": 128},
        "model": {"name": "builtin:convnet", "weights": "none"},
        "training": {"epochs": epochs, "batch_size": 32, "learning_rate": 1e-3},
        "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
        "objective": {"rungs": 10},
        "pruner": {"name": "none"},
        "budget": {"trials": trials},
        # A stack's trials overlap: what lies between two ends on a slot would not be whole trials.
        "resources": {
            **{"devices": "cpu", "trials_per_device": SLOTS, "threads_per_trial": 1},
            "stack": "off",
        },
    }
