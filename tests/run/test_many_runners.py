"""Eight runners of one worker each on one study: nothing surfaces, the budget is exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from sft_tune.store import reads
from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import open_optuna_storage
from tests.databases import new_database

RUNNERS = 8
# A whole runner of the product; what it lacks is the training: its worker says at once how a
# trial goes, so that eight of them meet at the database all the time. The values are of the
# configuration alone.
RUNNER = """
import sys
from pathlib import Path
from sft_tune.run.events import TrialEnded
from sft_tune.run.dispatcher import Dispatcher
from sft_tune.run.desk import Desk, OneStudy
from sft_tune.run.slots import Slot
from sft_tune.run.study import make_ledger
from sft_tune.session import quiet_optuna
from sft_tune.store.database import Database
from sft_tune.store.records import find_study
import queue

class Instant:
    name = "instant"

    def spawn(self, slot, inbox):
        return Worker(slot, inbox)

    def close(self):
        pass

class Worker:
    def __init__(self, slot, inbox):
        self.slot, self._inbox = slot, inbox

    def send(self, message):
        if message["do"] == "train":
            self._value = 1 - message["config"]["training"]["learning_rate"]
            self._inbox.put((self, {
                "event": "evaluation", "progress": 50, "epoch": 1.0, "step": 1, "horizon": 2,
                "train_loss": 1.0, "metrics": {"accuracy": self._value, "loss": 1.0},
                "learning_rate": 1e-3, "gradient_norm": 1.0, "seconds": 0.1, "unsaved": "",
            }))
        elif message["do"] == "verdict":
            self._inbox.put((self, {
                "event": "outcome", "reason": "completed", "note": "", "value": self._value,
                "metrics": {"accuracy": self._value}, "best_progress": 50, "steps": 2,
                "horizon": 2, "seconds": 0.1, "peak_memory": 1, "samples_per_second": 1.0,
                "checkpoint": None, "resumed_from": 0, "flags": {}, "kept_bytes": 0,
            }))

    def close(self, patience=10.0):
        pass

    def kill(self):
        pass

db = Database.open(sys.argv[1], create=True)
record = find_study(db, "many")
ended = []
desk = Desk(record.spec, make_ledger(db, record),
            lambda event: ended.append(event) if isinstance(event, TrialEnded) else None)
print("ready", flush=True)
sys.stdin.readline()
with quiet_optuna():
    desk.ledger.recover()
    why = Dispatcher(OneStudy(desk), Instant(), [Slot(0, None, 1, 0, 1)], queue.SimpleQueue()).run()
    desk.ledger.close(why)
db.dispose()
print(why, len(ended))
"""


def study(trials: int, sampler: str) -> dict[str, Any]:
    rate: dict[str, Any] = {"low": 1e-4, "high": 1e-1, "log": True}
    if sampler == "grid":
        rate["points"] = trials // 4
    return {
        "name": "many",
        "task": "image-classification",
        "data": {"source": "sklearn:digits"},
        "model": {"name": "builtin:convnet", "weights": "none"},
        "training": {"learning_rate": 1e-4, "weight_decay": 0.0},
        "space": {"learning_rate": rate, "weight_decay": [0.0, 0.01, 0.1, 0.2]},
        "sampler": {"name": sampler},
        "pruner": {"name": "none"},
        "budget": {"trials": trials},
        "resources": {"devices": "cpu", "trials_per_device": 1, "threads_per_trial": 1},
    }


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with new_database(request.param, tmp_path) as found:
        yield found


def run_all(url: str, content: dict[str, Any], tmp_path: Path, runners: int) -> list[str]:
    """Register the study, let all runners go at the same moment; return what each said last."""
    path = tmp_path / "many.json"
    path.write_text(json.dumps(content))
    cli = [sys.executable, "-c", "from sft_tune.cli import main; main()"]
    done = subprocess.run(
        [*cli, "submit", str(path), "--no-check", "--storage", url], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", RUNNER, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for _ in range(runners)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
    said = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert errors == ""
        said.append(out.strip())
    return said


def check(url: str, content: dict[str, Any], said: list[str]) -> None:
    trials = content["budget"]["trials"]
    db = Database.open(url, create=False)
    try:
        rows = reads.trial_rows(db, "many")
        found = optuna.load_study(study_name="many", storage=open_optuna_storage(db)).trials
    finally:
        db.dispose()
    assert [row.number for row in rows] == list(range(trials))
    assert {(row.state, row.phase) for row in rows} == {("COMPLETE", "ended")}
    assert [row.lease_owner for row in rows if row.lease_owner] == []
    assert sum(int(line.split()[1]) for line in said) == trials
    assert Counter(trial.state.name for trial in found) == {"COMPLETE": trials}
    if content["sampler"]["name"] == "grid":
        tried = Counter(json.dumps(row.params) for row in rows)
        assert len(tried) == trials


@pytest.mark.parametrize("sampler", ["grid"])
def test_three_runners_keep_the_budget_exact(url: str, sampler: str, tmp_path: Path) -> None:
    content = study(24, sampler)
    check(url, content, run_all(url, content, tmp_path, 3))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_eight_runners_keep_the_budget_exact(
    url: str, sampler: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = study(200, sampler)
    said = run_all(url, content, tmp_path, RUNNERS)
    check(url, content, said)
    with capsys.disabled():
        print(
            f"\n{url.partition(':')[0]}, {sampler}: trials by runner {[s.split()[1] for s in said]}"
        )
