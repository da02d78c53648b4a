"""Kill whatever can be killed, at random times, start again, and look at what is left.

`SFT_TUNE_CHAOS_RUNS` says how many seeded runs there are of each kind (default 2; 25 makes 50 in
all). Each prints what was done to it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from sft_tune.store import reads
from sft_tune.store.database import Database
from tests.chaos.server import OwnServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUNS = int(os.environ.get("SFT_TUNE_CHAOS_RUNS", "2"))
TRIALS = 8
MOST_STARTS = 12
START = "from sft_tune.cli import main; main()"

STUDY = {
    "name": "chaos",
    "task": "image-classification",
    "data": {"source": "sklearn:digits", "train_limit": 64, "validation_limit": 64},
    "model": {"name": "builtin:convnet", "weights": "none"},
    "training": {"epochs": 60, "batch_size": 16, "learning_rate": 3e-3, "augment": "flip_crop"},
    "space": {"learning_rate": {"low": 1e-4, "high": 3e-2, "log": True}, "epochs": [60, 90, 120]},
    "objective": {"rungs": 5},
    "sampler": {"name": "random"},
    "pruner": {"name": "none"},
    "budget": {"trials": TRIALS, "failures": 100},
    "resources": {
        "devices": "cpu",
        "threads_per_trial": 1,
        "checkpoint_seconds": 0,
        "max_attempts": 50,
    },
}


class Run:
    """`sft-tune start`, or another command, as a process, its output read as it comes."""

    def __init__(self, study: Path, url: str, cache: Path, *command: str) -> None:
        if command[:1] != ("worker",):
            command = (*(command or ("start", "--plain")), str(study))
        environment = {**os.environ, "SFT_TUNE_CACHE": str(cache), "SFT_TUNE_STORAGE": url}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self.lines: list[str] = []
        self.begun = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line)
                if " started" in line or " taken up again" in line:
                    self.begun.set()
        self.begun.set()

    def ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def workers(self) -> list[psutil.Process]:
        """Its workers, and the process that they are forked from."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        children = self.workers()
        self.process.kill()
        self.process.wait()
        # They go by themselves when their input ends.
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive

    def join(self) -> str:
        self.process.wait()
        self._reader.join()
        return "".join(self.lines)


def disturb(run: Run, how: str, dice: random.Random, server: OwnServer | None) -> None:
    if how in ("worker", "both"):
        workers = run.workers()
        if workers:
            with_it = dice.choice(workers)
            if with_it.is_running():
                os.kill(with_it.pid, signal.SIGKILL)
    if how in ("runner", "both"):
        run.kill()
    if how == "database" and server is not None:
        server.stop()
        run.ends_within(dice.uniform(0.5, 4.0))
        server.start()


def until_done(
    study: Path, url: str, cache: Path, dice: random.Random, server: OwnServer | None
) -> list[str]:
    """Start the study again and again, disturbed three times; return what was done to it."""
    kinds = ["worker", "runner", "both"] + (["database"] * 3 if server else [])
    plan = [dice.choice(kinds) for _ in range(3)]
    done: list[str] = []
    for _ in range(MOST_STARTS):
        run = Run(study, url, cache)
        run.begun.wait(120)
        while plan and not run.ends_within(dice.uniform(0.05, 2.5)):
            done.append(plan.pop(0))
            disturb(run, done[-1], dice, server)
        output = run.join()
        if run.process.returncode == 0:
            return done
        killed = run.process.returncode == -signal.SIGKILL
        # A server that stays away for longer than the retries ends a runner, in words.
        assert killed or "error: cannot" in output, output
    raise AssertionError(f"not done after {MOST_STARTS} starts, disturbed by {done}")


def results(url: str) -> dict[int, Any]:
    db = Database.open(url, create=False)
    try:
        rungs: dict[int, list[Any]] = {}
        for rung in reads.evaluation_rows(db, "chaos"):
            values = (rung.progress, rung.step, rung.train_loss, rung.metrics)
            rungs.setdefault(rung.number, []).append(values)
        return {
            t.number: (t.state, t.reason, t.params, t.seed, t.value, t.metrics, rungs[t.number])
            for t in reads.trial_rows(db, "chaos")
        }
    finally:
        db.dispose()


def leases(url: str) -> list[str | None]:
    db = Database.open(url, create=False)
    try:
        return [t.lease_owner for t in reads.trial_rows(db, "chaos") if t.lease_owner]
    finally:
        db.dispose()


def write(folder: Path, workers: int) -> Path:
    study = json.loads(json.dumps(STUDY))
    study["resources"]["trials_per_device"] = workers
    path = folder / "chaos.json"
    path.write_text(json.dumps(study))
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[int, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    url = f"sqlite:///{folder}/t.db"
    run = Run(write(folder, 2), url, cache)
    assert "of 8)" in run.join()
    return results(url)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    own = OwnServer(tmp_path_factory.mktemp("postgresql"))
    yield own
    own.remove()


def check(url: str, undisturbed: dict[int, Any], done: list[str], label: str) -> None:
    found = results(url)
    print(f"{label}: {' '.join(done) or 'nothing hit'}")
    assert sorted(found) == list(range(TRIALS))
    assert found == undisturbed
    assert leases(url) == []
    storage = optuna.storages.RDBStorage(url)
    try:
        study = optuna.load_study(study_name="chaos", storage=storage)
        assert [t.state.name for t in study.trials] == ["COMPLETE"] * TRIALS
    finally:
        storage.engine.dispose()


@pytest.mark.parametrize("seed", range(RUNS))
def test_kills_at_random_times_change_nothing(
    seed: int, tmp_path: Path, cache: Path, undisturbed: dict[int, Any]
) -> None:
    dice = random.Random(seed)
    url = f"sqlite:///{tmp_path}/t.db"
    done = until_done(write(tmp_path, dice.choice([2, 3, 4])), url, cache, dice, None)
    check(url, undisturbed, done, f"sqlite, seed {seed}")


@pytest.mark.parametrize("seed", range(1000, 1000 + RUNS))
def test_a_database_server_that_stops_for_seconds_changes_nothing(
    seed: int, tmp_path: Path, cache: Path, undisturbed: dict[int, Any], server: OwnServer
) -> None:
    dice = random.Random(seed)
    url = server.new_database()
    done = until_done(write(tmp_path, dice.choice([2, 3])), url, cache, dice, server)
    check(url, undisturbed, done, f"postgresql, seed {seed}")
