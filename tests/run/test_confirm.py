"""Finalists over fresh seeds through real workers: resumed exactly, shared, tested once."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import sft_tune
from sft_tune.errors import StudyNotFoundError
from sft_tune.run.confirm import confirm_study, finalists_of
from sft_tune.run.study import start_study
from sft_tune.spec.config import finalist_seed
from sft_tune.spec.load import load_study
from sft_tune.spec.search import ConfirmSpec
from sft_tune.store.database import Database
from sft_tune.store.finalist_rows import FinalistRow, finalist_rows
from sft_tune.store.records import find_study
from tests.run.conftest import TINY
from tests.run.test_function_study import run as run_function

PROGRAM = [sys.executable, "-c", "from sft_tune.cli import main; main()"]
# Dies as by `kill -9` when a run of the confirmation reaches its rung number `argv[2]`.
KILLED = """
import os, signal, sys
from sft_tune.run.confirm import confirm_study
from sft_tune.run.events import RungReached
from sft_tune.spec.search import ConfirmSpec
from sft_tune.store.database import Database
from sft_tune.store.records import find_study
rungs = []
def listen(event):
    rungs.append(1) if isinstance(event, RungReached) else None
    if len(rungs) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
db = Database.open(sys.argv[1], create=False)
confirm_study(find_study(db, "tiny"), db, ConfirmSpec(top=1, seeds=2), notify=listen)
"""


def search(folder: Path, **changes: Any) -> Path:
    """Run the tiny study of two trials in ``folder``; return its database."""
    folder.mkdir(exist_ok=True)
    content = {**TINY, "budget": {"trials": 2}, "sampler": {"name": "random"}, **changes}
    path = folder / "tiny.json"
    path.write_text(json.dumps(content))
    db = Database.open(f"sqlite:///{folder}/t.db", create=True)
    try:
        start_study(load_study(path), db)
    finally:
        db.dispose()
    return folder / "t.db"


def confirm(path: Path, top: int = 1, seeds: int = 2, name: str = "tiny") -> list[FinalistRow]:
    db = Database.open(f"sqlite:///{path}", create=False)
    try:
        why = confirm_study(find_study(db, name), db, ConfirmSpec(top=top, seeds=seeds))
        assert why == "trials"
        return finalist_rows(db, name)
    finally:
        db.dispose()


def result(rows: list[FinalistRow]) -> list[Any]:
    """Return what must not depend on kills and on who ran it."""
    return sorted((r.number, r.seed, r.reason, r.value, r.metrics, r.test_metrics) for r in rows)


def rows_of(path: Path) -> list[FinalistRow]:
    db = Database.open(f"sqlite:///{path}", create=False)
    try:
        return finalist_rows(db, "tiny")
    finally:
        db.dispose()


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of a study whose search has ended; copy it before confirming."""
    return search(tmp_path_factory.mktemp("searched"))


@pytest.fixture(scope="module")
def calm(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, confirmed in one go."""
    return confirmed(searched, tmp_path_factory.mktemp("calm"))


def copied(searched: Path, folder: Path) -> Path:
    """Return a copy of the database; what other confirmations left beside the trials goes."""
    for left in searched.parent.rglob("seed-*"):
        shutil.rmtree(left)
    return Path(shutil.copy(searched, folder / "t.db"))


def confirmed(searched: Path, folder: Path) -> Path:
    path = copied(searched, folder)
    confirm(path)
    return path


def test_every_finalist_has_the_same_fresh_seeds_and_is_tested(calm: Path) -> None:
    rows = rows_of(calm)
    seeds = [finalist_seed(TINY.get("seed", 0), index) for index in range(2)]
    numbers = {row.number for row in rows}
    assert Counter((r.number, r.seed) for r in rows) == Counter(
        (n, s) for n in numbers for s in seeds
    )
    assert {r.reason for r in rows} == {"completed"} and {r.attempts for r in rows} == {1}
    assert all("accuracy" in r.test_metrics and r.value == r.metrics["accuracy"] for r in rows)
    assert len({r.value for r in rows}) > 1
    study = sft_tune.open_study("tiny", f"sqlite:///{calm}")
    assert study.best.number in numbers
    table = study.finalists()
    assert len(table) == len(rows) and table["test_accuracy"].notna().all()


def test_what_is_confirmed_is_not_trained_again_and_more_seeds_are_added(
    calm: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(calm, tmp_path / "t.db"))
    before = rows_of(path)
    assert confirm(path) == before
    after = confirm(path, seeds=3)
    assert after[: len(before)] == before
    assert len(after) == len(before) * 3 // 2


@pytest.mark.parametrize("rung", [pytest.param(2, marks=pytest.mark.slow), 6])
def test_killed_it_goes_on_and_ends_as_one_that_was_not(
    calm: Path, searched: Path, tmp_path: Path, rung: int
) -> None:
    path = copied(searched, tmp_path)
    url = f"sqlite:///{path}"
    done = subprocess.run([sys.executable, "-c", KILLED, url, str(rung)], timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert any(row.phase != "ended" for row in rows_of(path))
    rows = confirm(path)
    assert result(rows) == result(rows_of(calm))
    assert max(row.attempts for row in rows) == 2


def test_two_runners_share_a_confirmation(calm: Path, searched: Path, tmp_path: Path) -> None:
    path = copied(searched, tmp_path)
    args = ["confirm", "tiny", "--top", "1", "--seeds", "2", "--storage", f"sqlite:///{path}"]
    both = [
        subprocess.Popen([*PROGRAM, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    for process in both:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output.decode()
        told = re.findall(r"\((\d+) of 4 runs(, about \S+ left)?\)", output.decode())
        assert [bool(left) for ended, left in told] == [ended != "4" for ended, left in told]
    rows = rows_of(path)
    assert result(rows) == result(rows_of(calm))
    assert {row.attempts for row in rows} == {1}


def test_best_and_the_interface_say_whether_it_is_confirmed(calm: Path, searched: Path) -> None:
    environment = {**os.environ, "COLUMNS": "100"}

    def told(path: Path, *args: str) -> str:
        command = [*PROGRAM, *args, "--storage", f"sqlite:///{path}"]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        ).stdout

    assert "sft-tune confirm tiny" in told(searched, "best", "tiny")
    assert json.loads(told(searched, "best", "tiny", "--json"))["confirmed"] is False
    found = json.loads(told(calm, "confirm", "tiny", "--show", "--json"))
    assert found["runs_open"] == 0 and found["has_test"] is True
    assert json.loads(told(calm, "best", "tiny", "--json"))["confirmed"] is found["confirmed"]
    assert json.loads(told(calm, "best", "tiny", "--json"))["leader"] == found["leader"]
    assert "fresh seeds" in told(calm, "best", "tiny")
    assert "fresh seeds" in told(calm, "status", "tiny")  # though its trials are few
    assert "fresh seeds" not in told(searched, "status", "tiny")
    fewer = told(calm, "confirm", "tiny", "--top", "1", "--seeds", "1")
    assert "--seeds 1: the finalists have up to 2 seeds already; all count" in fewer
    assert "already" not in told(calm, "confirm", "tiny", "--top", "1", "--seeds", "2")
    best = sft_tune.open_study("tiny", f"sqlite:///{calm}").best
    assert best.confirmed is found["confirmed"]


def test_without_a_test_split_and_with_artifacts_elsewhere(tmp_path: Path) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    data = {**TINY["data"], "test_fraction": 0.0}
    path = search(tmp_path / "s", data=data, storage={"artifacts": f"file://{place}"})
    rows = confirm(path)
    assert {r.reason for r in rows} == {"completed"}
    assert all(r.test_metrics == {} for r in rows)
    there = [p for p in place.rglob("seed-*/*") if p.is_file()]
    assert {p.name for p in there} >= {"log.txt"}
    assert not [p for p in there if p.name.endswith(".safetensors")]


def test_a_function_of_ones_own_is_confirmed(tmp_path: Path) -> None:
    run_function(tmp_path, budget={"trials": 3})
    rows = confirm(tmp_path / "t.db", name="mine", top=2)
    assert {r.reason for r in rows} == {"completed"}
    assert all(r.test_metrics == {} and r.value is not None for r in rows)


FAILS_LATER = """
    from pathlib import Path

    def train(config, folder, report):
        if Path("broken").exists():
            raise RuntimeError("Error(s) in loading state_dict:\\n\\tMissing key(s): a.weight")
        return {"score": config["x"]}
"""


def test_a_run_that_crashes_is_told_in_a_line_and_shown_whole(tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text(textwrap.dedent(FAILS_LATER))
    run_function(tmp_path, task="python:later.py:train", space={"x": [1, 2]})
    (tmp_path / "broken").touch()
    storage = ["--storage", f"sqlite:///{tmp_path}/t.db"]
    told = subprocess.run(
        [*PROGRAM, "confirm", "mine", "--top", "1", "--seeds", "1", *storage],
        capture_output=True,
        text=True,
    )
    lines = [line for line in told.stdout.splitlines() if "crashed" in line]
    assert len(lines) == 2 and "Missing key" not in told.stdout
    text = "trial 1 crashed, RuntimeError: Error(s) in loading state_dict (the whole error: "
    assert f"{text}sft-tune show mine 1)" in told.stdout
    shown = subprocess.run(
        [*PROGRAM, "show", "mine", "1", *storage], capture_output=True, text=True
    )
    assert "errors of its confirmation with seed" in shown.stdout
    whole = shown.stdout.replace("\n", "")  # a long path is folded anywhere
    assert "Missing key(s): a.weight" in whole and "later.py" in whole


def test_nothing_to_confirm_is_said(searched: Path) -> None:
    db = Database.open(f"sqlite:///{searched}", create=False)
    try:
        with pytest.raises(StudyNotFoundError, match="no completed trial to confirm"):
            finalists_of(find_study(db, "tiny"), [], 3)
    finally:
        db.dispose()
