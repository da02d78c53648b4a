"""What a large study costs: its next trial, its commands, its report, at up to 10,000 trials.

A trial with ten rungs is asked for, reported and told as the dispatcher does; what a free worker
waits for its next trial is taken from a dispatcher whose workers train in no time. The commands
are whole processes, their start included. CPU seconds stand beside the wall's, since a machine that
does other things too stretches these and not those.
"""

from __future__ import annotations

import os
import queue
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import optuna

from sft_tune.run.desk import Desk, OneStudy
from sft_tune.run.dispatcher import Dispatcher
from sft_tune.run.engine import Inbox, LocalEngine
from sft_tune.run.ledger import Ledger
from sft_tune.run.placement import Placement
from sft_tune.run.searcher import Searcher
from sft_tune.run.slots import Slot
from sft_tune.run.study import make_ledger
from sft_tune.spec.load import parse_study
from sft_tune.spec.plan import make_plan
from sft_tune.spec.study import StudySpec
from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import open_optuna_storage
from sft_tune.store.records import StudyRecord
from tests.benchmarks import Table
from tests.benchmarks.filled import RUNGS, fill
from tests.benchmarks.recorded import ROOT, SPACE

SIZES = (100, 1_000, 10_000)
NEXT = "a free worker's next trial"
TARGETS = {NEXT: 0.2, "status": 0.5, "list": 0.5, "best": 0.5}
"""Seconds that each may take at the largest size."""
REPEATS = 3
PROGRAM = "from sft_tune.cli import main; main()"


class Spent(NamedTuple):
    """Seconds by the wall clock, and of CPU."""

    wall: float
    cpu: float

    def text(self) -> str:
        """Return both, in seconds or milliseconds."""
        return " / ".join(f"{v:.2f} s" if v >= 1 else f"{1000 * v:.0f} ms" for v in self)


def run(short: bool) -> Table:
    """Measure at 100, 1,000 and 10,000 trials (``short``: at 100)."""
    sizes, repeats = ((100,), 1) if short else (SIZES, REPEATS)
    found = {size: measure(size, repeats) for size in sizes}
    jobs = list(found[sizes[0]])
    rows = [
        (job, *(found[size][job].text() for size in sizes), _target(job, found[sizes[-1]][job]))
        for job in jobs
    ]
    most = found[sizes[-1]]
    missed = [job for job, target in TARGETS.items() if most[job].wall >= target]
    slow = [job for job, target in TARGETS.items() if most[job].cpu >= target]
    notes = [f"commands are whole processes; medians of {repeats}; SQLite; sampler tpe, asha"]
    if not short:
        notes.append(
            "every target met"
            if not missed
            else f"A TARGET WAS MISSED: {', '.join(missed)} (in CPU seconds: {len(slow)} of them)"
        )
    return Table(
        title=f"one study of so many trials with {RUNGS} rungs each: wall / CPU",
        columns=("", *(f"{size:,} trials" for size in sizes), "target"),
        rows=rows,
        notes=notes,
        met=None if short else not missed,
    )


def _target(job: str, spent: Spent) -> str:
    return f"< {TARGETS[job]} s" if job in TARGETS else "-"


def measure(trials: int, repeats: int) -> dict[str, Spent]:
    """Return what each job costs with ``trials`` trials in the study."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        storage = f"{name}/scale.db"
        db = Database.open(storage, create=True)
        try:
            record = fill(db, _spec(trials), trials)
            found = _dispatch(db, record, repeats)
            found[NEXT] = _next_trial(db, record, repeats)
        finally:
            db.dispose()
        options = ["--storage", storage]
        commands = {
            "--help": ["--help"],
            "list": ["list", *options],
            "status": ["status", "scale", *options],
            "best": ["best", "scale", *options],
            "trials": ["trials", "scale", *options],
            "advise": ["advise", "scale", *options],
            "report": ["report", "scale", "-o", f"{name}/report.html", *options],
        }
        for job, arguments in commands.items():
            often = 1 if job in ("advise", "report") else repeats
            found[job] = _median([_command(arguments, Path(name)) for _ in range(often)])
    return found


def _dispatch(db: Database, record: StudyRecord, repeats: int) -> dict[str, Spent]:
    """Have trials asked for, reported and told, as the dispatcher does."""
    spec, found = record.spec, {}
    plan = make_plan(spec)

    def opened() -> Ledger:
        searcher = Searcher(spec, plan, open_optuna_storage(db))
        return Ledger(db, record, spec, plan, searcher, record.artifacts)

    found["open the study"], ledger = _timed(opened)
    spent: dict[str, list[Spent]] = {"ask": [], "rung": [], "tell": []}
    for index in range(repeats + 1):
        asked, placement = _timed(_ask, ledger)
        reports = [
            _timed(ledger.rungs, [(placement, _evaluation(rung))])[0] for rung in range(RUNGS)
        ]
        told, _ = _timed(ledger.end, placement, _outcome())
        if index == 0:
            # Optuna reads all trials into memory once, with the first that a runner asks for.
            found["first ask"] = asked
            continue
        for job, measured in (("ask", [asked]), ("rung", reports), ("tell", [told])):
            spent[job] += measured
    ledger.close(None)
    return {**found, **{job: _median(measured) for job, measured in spent.items()}}


def _next_trial(db: Database, record: StudyRecord, repeats: int) -> Spent:
    """Return what lies between a worker's word that its trial has ended, and its next one."""
    inbox: Inbox = queue.SimpleQueue()
    worker = Instant(inbox)
    dispatcher = Dispatcher(
        OneStudy(Desk(record.spec, make_ledger(db, record), lambda happened: None)),
        LocalEngine(Path()),  # which has nothing to start
        [worker.slot],
        inbox,
        [worker],
    )
    # The first one trains while Optuna has read no trial yet.
    worker.left, worker.over = repeats + 2, dispatcher.abort
    dispatcher.run()
    return _median(worker.spent[1:])


class Instant:
    """A worker that trains in no time, and measures how long it has none to train."""

    def __init__(self, inbox: Inbox) -> None:
        self.slot = Slot(0, None, 1)
        self.spent: list[Spent] = []
        self.left = 0
        self.over: Callable[[], None] = lambda: None
        self._inbox = inbox
        self._free: tuple[float, float] | None = None
        self._rung = 0

    def send(self, message: dict[str, Any]) -> None:
        """Take a command, and say at once what comes of it."""
        now = (time.perf_counter(), time.process_time())
        if message["do"] == "train":
            if self._free is not None:
                self.spent.append(Spent(now[0] - self._free[0], now[1] - self._free[1]))
            self.left -= 1
            self._rung = 0
            if self.left < 0:
                self.over()
        elif message["do"] == "verdict":
            self._rung += 1
        ended = self._rung == RUNGS or (message["do"] == "verdict" and not message["go_on"])
        said = {"event": "outcome", **_outcome()} if ended else self._evaluation()
        self._free = (time.perf_counter(), time.process_time())
        self._inbox.put((self, said))

    def _evaluation(self) -> dict[str, Any]:
        return {"event": "evaluation", "unsaved": "", **_evaluation(self._rung)}

    def close(self, patience: float = 10.0) -> None:
        """There is nothing to end."""

    def kill(self) -> None:
        """There is nothing to end."""

    def drop(self) -> None:
        """There is nothing to end."""


def _ask(ledger: Ledger) -> Placement:
    placement = ledger.next_placement()
    if placement is None:
        raise RuntimeError("the study has nothing left to run")
    return ledger.begin(placement, "cpu")


def _evaluation(rung: int) -> dict[str, Any]:
    value = 0.9 * (1 - 0.5 ** (rung + 1))
    return {
        **{"progress": 100 * (rung + 1) // RUNGS, "epoch": 1.0, "step": 10 * (rung + 1)},
        **{"train_loss": 1 - value, "metrics": {"loss": 1 - value, "accuracy": value}},
        **{"learning_rate": 1e-3, "gradient_norm": 1.0, "seconds": 1.0, "horizon": 100},
    }


def _outcome() -> dict[str, Any]:
    return {
        **{"reason": "completed", "value": 0.9, "metrics": {"loss": 0.1, "accuracy": 0.9}},
        **{"steps": 100, "horizon": 100, "seconds": 10.0, "best_progress": 100},
    }


def _spec(trials: int) -> StudySpec:
    return parse_study(
        {
            "name": "scale",
            "task": "image-classification",
            "data": {"source": "sklearn:digits"},
            "model": {"name": "builtin:convnet", "weights": "none"},
            "space": SPACE,
            "budget": {"trials": 2 * trials},
        },
        root=ROOT,
    )


def _timed(job: Callable[..., Any], *arguments: Any) -> tuple[Spent, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = job(*arguments)
    return Spent(time.perf_counter() - wall, time.process_time() - cpu), result


def _command(arguments: list[str], folder: Path) -> Spent:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"{arguments}: exit {done.returncode}\n{done.stderr[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(wall, cpu)


def _median(spent: list[Spent]) -> Spent:
    return Spent(*(statistics.median(values) for values in zip(*spent, strict=True)))
