"""`kill -9` of the whole command, and what is left of its study afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sft_tune.store import reads
from sft_tune.store.database import Database
from tests.databases import new_database

# With a line for every rung, to be killed at.
PROGRAM = (
    "from sft_tune.cli import main; from sft_tune.view import lines; lines.RUNG_SECONDS = 0; main()"
)
COMMAND = [sys.executable, "-c", PROGRAM, "start", "--plain"]


def start_until(path: Path, url: str, line: str | None) -> int:
    """Run `start`; at the first output that holds ``line``, kill it. Return its exit status."""
    environment = {**os.environ, "SFT_TUNE_STORAGE": url}
    process = subprocess.Popen(
        [*COMMAND, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    with process.stdout as output:
        for text in output:
            if line is not None and line in text:
                children = psutil.Process(process.pid).children(recursive=True)
                process.send_signal(signal.SIGKILL)
                process.wait()
                # Its workers go by themselves, before they could write beside the next runner.
                gone, alive = psutil.wait_procs(children, timeout=30)
                assert not alive
                break
    return process.wait()


def result(url: str) -> list[Any]:
    """Return what must not depend on kills: numbers, states, parameters, metrics, rungs."""
    db = Database.open(url, create=False)
    try:
        trials = [
            (t.number, t.state, t.reason, t.params, t.value, t.metrics)
            for t in reads.trial_rows(db, "tiny")
        ]
        rungs = [
            (r.number, r.progress, r.step, r.train_loss, r.metrics, r.learning_rate)
            for r in reads.evaluation_rows(db, "tiny")
        ]
        return [trials, rungs]
    finally:
        db.dispose()


def test_a_study_that_is_killed_again_and_again_ends_as_one_that_was_not(
    study_file: Callable[..., Path],
) -> None:
    pruner = {"name": "asha", "first": 25, "reduction": 2, "startup_trials": 0}
    path = study_file(budget={"trials": 4}, pruner=pruner)
    calm, wild = "sqlite:///calm.db", "sqlite:///wild.db"
    assert start_until(path, calm, None) == 0
    places = ["trial 0 started", "trial 0 at 50 %", "trial 2 started"]
    for line in places:
        assert start_until(path, wild, line) == -signal.SIGKILL
    assert start_until(path, wild, None) == 0
    assert result(wild) == result(calm)


@pytest.mark.services
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
def test_a_server_keeps_a_killed_study_too(
    study_file: Callable[..., Path], tmp_path: Path, server: str
) -> None:
    path = study_file(budget={"trials": 2})
    with new_database(server, tmp_path) as url:
        assert start_until(path, url, "trial 1 started") == -signal.SIGKILL
        assert start_until(path, url, None) == 0
        (first, second), rungs = result(url)
    assert (first[:3], second[:3]) == ((0, "COMPLETE", "completed"), (1, "COMPLETE", "completed"))
    assert [rung[:2] for rung in rungs] == [(n, p) for n in (0, 1) for p in (25, 50, 75, 100)]
