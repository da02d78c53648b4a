"""The tuner's own cost, for studies of short trials on two CPU workers.

Of the seconds that two slots had (wall seconds times slots), how many were not spent inside a
trial's training and evaluation. What counts as inside is what a trial's rows say (`seconds`: from
the model's making to the trial's end, with evaluation and checkpoints), less the time in which
the dispatcher handles the trial's rungs: its worker waits for the verdict meanwhile. Each slot's
clock runs from the end of its first trial to the end of its last, so that neither the start of
the processes nor a slot that finds nothing left to do is counted; the start is reported apart.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import event

from sft_tune.run.dispatcher import Dispatcher
from sft_tune.run.engine import Worker
from sft_tune.run.events import Event, TrialEnded, TrialStarted
from sft_tune.run.study import start_study
from sft_tune.spec.load import load_study
from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import open_optuna_storage
from tests.benchmarks import Table

SLOTS = 2
TARGETS = {10: 0.03, 60: 0.01}
"""Seconds of a trial to the share of the tuner that is admitted."""


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
    """Seconds that each trial waited for verdicts."""

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
        start: seconds from the call to the first trial's start.
        statements: SQL statements a trial.
    """

    trials: int
    trial_seconds: float
    inside: float
    given: float
    start: float
    statements: float

    @property
    def share(self) -> float:
        """Share of the slots' time that the tuner took for itself."""
        return 1 - self.inside / self.given


def run(short: bool) -> Table:
    """Measure trials of 10 and of 60 seconds (``short``: of about 1)."""
    plan = {1: 8} if short else {10: 22, 60: 10}
    rows, notes, met = [], [], True
    for seconds, trials in plan.items():
        cost = measure(seconds, trials)
        target = TARGETS.get(seconds)
        rows.append(
            (
                f"{cost.trial_seconds:.1f} s",
                str(cost.trials),
                f"{cost.inside:.1f} s",
                f"{cost.given:.1f} s",
                f"{cost.inside / cost.given:.4f}",
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
    columns = ("trial", "n", "inside", "slots x wall", "ratio", "own cost", "target")
    return Table(
        title=f"builtin:convnet on digits, {SLOTS} workers of 1 thread, 10 rungs a trial, SQLite",
        columns=(*columns, "first start", "SQL a trial"),
        rows=rows,
        notes=notes,
        met=None if short else met,
    )


def measure(seconds: int, trials: int) -> Cost:
    """Run a study of ``trials`` trials of about ``seconds`` each."""
    with tempfile.TemporaryDirectory() as folder:
        before = {name: os.environ.get(name) for name in ("SFT_TUNE_CACHE",)}
        os.environ["SFT_TUNE_CACHE"] = f"{folder}/cache"
        try:
            epochs = _epochs(Path(folder), seconds)
            record = _study(Path(folder) / "measured", epochs, trials)
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
    inside = given = 0.0
    own: list[float] = []
    for mine in slots.values():
        given += record.ended_at[mine[-1]] - record.ended_at[mine[0]]
        own += [
            record.ended[index].seconds - record.waited.get(record.ended[index].number, 0.0)
            for index in mine[1:]
        ]
    inside = sum(own)
    first = max(mine[0] for mine in slots.values())
    counted = len(record.ended) - 1 - first
    statements = record.statements_at[-1] - record.statements_at[first]
    return Cost(
        trials=len(own),
        trial_seconds=statistics.median(own),
        inside=inside,
        given=given,
        start=record.started[0] - record.begun,
        statements=statements / counted,
    )


def _epochs(folder: Path, seconds: int) -> int:
    """Return how many epochs take about ``seconds`` on two workers at once, by a trial run."""
    probed = 20
    record = _study(folder / "probe", probed, 4)
    each = statistics.median(ended.seconds for ended in record.ended[2:]) / probed
    return max(1, round(seconds / each))


def _study(folder: Path, epochs: int, trials: int) -> Record:
    folder.mkdir()
    path = folder / "overhead.json"
    path.write_text(json.dumps(_content(epochs, trials)))
    record = Record(time.monotonic())
    db = Database.open(f"sqlite:///{folder}/overhead.db", create=True)
    try:
        with _timed_rungs(record):
            _start(path, db, record)
    finally:
        db.dispose()
    return record


def _start(path: Path, db: Database, record: Record) -> None:
    for engine in (db.engine, open_optuna_storage(db).engine):
        event.listen(engine, "before_cursor_execute", record.tick)
    start_study(load_study(path), db, notify=record.notify)


@contextmanager
def _timed_rungs(record: Record) -> Iterator[None]:
    """Note how long the dispatcher takes over each rung."""
    plain = Dispatcher._rungs

    def timed(self: Dispatcher, said: Sequence[tuple[Worker | None, Any]]) -> None:
        busy = self._crew.busy
        reached = [busy[w].placement.number for w, _ in said if w is not None and w in busy]
        begun = time.monotonic()
        plain(self, said)
        spent = time.monotonic() - begun
        for number in reached:  # each waits for all that are recorded together
            record.waited[number] = record.waited.get(number, 0.0) + spent

    Dispatcher._rungs = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        Dispatcher._rungs = plain  # type: ignore[method-assign]


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
        "resources": {"devices": "cpu", "trials_per_device": SLOTS, "threads_per_trial": 1},
    }
