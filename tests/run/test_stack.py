"""A study whose trials train as one stack: the rows, values and budget of one without."""

from __future__ import annotations

import json
import queue
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from sft_tune.run import calibrate
from sft_tune.run.confirm import confirm_study
from sft_tune.run.engine import LocalEngine
from sft_tune.run.events import Event, Notice, RungReached, TrialEnded, TrialStarted
from sft_tune.run.serve import serve
from sft_tune.run.slots import Slot, find_slots
from sft_tune.run.study import start_study, submit_study
from sft_tune.spec.load import load_study
from sft_tune.spec.search import ConfirmSpec
from sft_tune.store import reads
from sft_tune.store.database import Database
from sft_tune.store.finalist_rows import FinalistRow, finalist_rows
from sft_tune.store.records import find_study
from sft_tune.trial.convnet import ConvNet
from tests.run.test_kill import result, start_until

SPACE = {
    "learning_rate": {"low": 1e-3, "high": 1e-1, "log": True},
    "optimizer": ["sgd", "adamw"],
    "epochs": [4, 8, 16],
    "batch_size": [8, 16, 40],
}


@pytest.fixture
def heads(study_file: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write a study of heads on a frozen network, with so many trials at once."""
    torch.manual_seed(0)
    save_file(ConvNet(10).state_dict(), tmp_path / "convnet.safetensors")

    def write(stack: int | str, **changes: Any) -> Path:
        sections: dict[str, Any] = {
            "model": {"weights": str(tmp_path / "convnet.safetensors")},
            "training": {"freeze": "backbone", "epochs": 4},
            "space": SPACE,
            "budget": {"trials": 7},
            "resources": {"stack": stack},
        }
        for section, value in changes.items():
            sections[section] = {**sections.get(section, {}), **value}
        return study_file(**sections)

    return write


def run(path: Path, url: str, notify: Callable[[Event], None] = lambda _: None) -> list[Any]:
    db = Database.open(url, create=True)
    try:
        start_study(load_study(path), db, notify=notify)
        return list(reads.trial_rows(db, "tiny"))
    finally:
        db.dispose()


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_stacked_study_is_what_it_is_without_and_survives_its_worker(
    heads: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "cache"))
    expected = run(heads("off"), f"sqlite:///{tmp_path}/alone.db")
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if killed and sum(isinstance(one, RungReached) for one in events) == 10:
            for child in psutil.Process().children(recursive=True):
                child.kill()

    found = run(heads(3), f"sqlite:///{tmp_path}/stacked.db", watch)
    assert len(found) == len(expected) == 7
    for one, other in zip(found, expected, strict=True):
        assert (one.number, one.params, one.reason) == (other.number, other.params, "completed")
        assert one.value == pytest.approx(other.value, abs=0.02)
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-3)
        assert (one.device, one.seed, one.steps) == (other.device, other.seed, other.steps)
    assert any(row.attempts == 2 for row in found) is killed
    started = [event for event in events if isinstance(event, TrialStarted)]
    assert {event.slot for event in started} == {0}
    ends = [i for i, event in enumerate(events) if type(event).__name__ == "TrialEnded"]
    before = [event for event in events[: ends[0]] if isinstance(event, TrialStarted)]
    assert len({event.number for event in before}) >= 3  # at once


def test_a_stacked_study_whose_runner_is_killed_ends_as_one_that_was_not(
    heads: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "cache"))
    calm, wild = (f"sqlite:///{tmp_path}/{name}.db" for name in ("calm", "wild"))
    assert start_until(heads(3), calm, None) == 0
    for line in ("trial 1 at 25 %", "trial 4 started"):
        assert start_until(heads(3), wild, line) == -signal.SIGKILL
    assert start_until(heads(3), wild, None) == 0
    (expected, expected_rungs), (found, rungs) = result(calm), result(wild)
    assert [row[:4] for row in found] == [row[:4] for row in expected]
    assert [row[:3] for row in rungs] == [row[:3] for row in expected_rungs]
    for (*_, value, metrics), (*_, value_, metrics_) in zip(found, expected, strict=True):
        assert value == pytest.approx(value_, abs=0.02)
        assert metrics["loss"] == pytest.approx(metrics_["loss"], rel=1e-3)
    db = Database.open(wild, create=False)
    try:
        trials = reads.trial_rows(db, "tiny")
    finally:
        db.dispose()
    assert [trial.number for trial in trials] == list(range(7))
    assert {trial.lease_owner for trial in trials} == {None}
    # Trials that stood in the stack when it died: at least the first ones, and those of the next.
    assert sum(trial.attempts > 1 for trial in trials) >= 3


def test_a_worker_of_one_study_stacks_its_trials_too(
    heads: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "cache"))
    expected = run(heads("off"), f"sqlite:///{tmp_path}/alone.db")
    loaded = load_study(heads(3))
    db = Database.open(f"sqlite:///{tmp_path}/served.db", create=True)
    events: list[Event] = []
    try:
        submit_study(loaded, db, check=False)
        engine = LocalEngine(tmp_path / "workers")
        slots, inbox = find_slots(loaded.spec.resources), queue.SimpleQueue[Any]()
        notify = lambda _, event: events.append(event)  # noqa: E731
        assert serve(db, engine, slots, inbox, notify, only="tiny", idle_seconds=0) == "idle"
        found = list(reads.trial_rows(db, "tiny"))
    finally:
        db.dispose()
    for one, other in zip(found, expected, strict=True):
        assert (one.number, one.params, one.reason) == (other.number, other.params, "completed")
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-3)
    ends = [i for i, event in enumerate(events) if isinstance(event, TrialEnded)]
    started = [event for event in events[: ends[0]] if isinstance(event, TrialStarted)]
    assert len({event.number for event in started}) >= 3  # at once


def test_a_worker_that_was_only_measured_beside_another_leaves_the_stack_alone(
    heads: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed before the gain of a stack is measured, and its last word comes meanwhile."""
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "cache"))

    def both(*args: Any) -> int:
        *_, engine, inbox, idle = args
        idle.append(engine.spawn(Slot(1, None, 1), inbox))
        return 1

    monkeypatch.setattr(calibrate, "_search", both)
    events: list[Event] = []
    path = heads("auto", resources={"trials_per_device": None, "threads_per_trial": 1})
    run(path, f"sqlite:///{tmp_path}/t.db", events.append)
    told = [event.text for event in events if isinstance(event, Notice)]
    assert any("train as one stack" in text for text in told)


def test_finalists_train_as_a_stack_and_are_tested_as_alone(
    heads: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "cache"))

    def confirmed(stack: int | str) -> tuple[list[FinalistRow], list[Event]]:
        url, events = f"sqlite:///{tmp_path}/{stack}.db", list[Event]()
        run(heads(stack, budget={"trials": 3}, storage={"artifacts": f"runs-{stack}"}), url)
        db = Database.open(url, create=False)
        try:
            record, wanted = find_study(db, "tiny"), ConfirmSpec(top=2, seeds=3)
            assert confirm_study(record, db, wanted, notify=events.append) == "trials"
            rows = finalist_rows(db, "tiny")
        finally:
            db.dispose()
        return sorted(rows, key=lambda row: (row.number, row.seed)), events

    (expected, _), (found, events) = confirmed("off"), confirmed(6)
    ends = [i for i, event in enumerate(events) if isinstance(event, TrialEnded)]
    assert sum(isinstance(event, TrialStarted) for event in events[: ends[0]]) == 6
    assert len(found) == len(expected) == len(ends)
    for one, other in zip(found, expected, strict=True):
        assert (one.number, one.seed, one.reason) == (other.number, other.seed, "completed")
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-3)
        assert one.test_metrics["loss"] == pytest.approx(other.test_metrics["loss"], rel=1e-2)
    assert not list(tmp_path.rglob("seed-*/best.safetensors"))


def test_pruned_trials_leave_a_stack(
    heads: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "cache"))
    pruner = {"name": "median", "startup_trials": 2}
    rows = run(heads("auto", pruner=pruner, budget={"trials": 12}), f"sqlite:///{tmp_path}/x.db")
    assert len(rows) == 12
    assert {row.reason for row in rows} == {"completed", "pruned"}
    assert all(row.steps < row.horizon for row in rows if row.reason == "pruned")


def test_a_study_of_models_that_train_as_one_is_what_it_is_without(
    study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "cache"))
    events: list[Event] = []
    changes: dict[str, Any] = {"budget": {"trials": 5}, "training": {"optimizer": "sgd"}}
    path = study_file(**changes, resources={"stack": "off"})
    expected = run(path, f"sqlite:///{tmp_path}/alone.db")
    path = study_file(**changes, resources={"stack": 3}, storage={"artifacts": "runs-stacked"})
    found = run(path, f"sqlite:///{tmp_path}/stacked.db", events.append)
    assert len(found) == len(expected) == 5
    for one, other in zip(found, expected, strict=True):
        assert (one.number, one.params, one.reason) == (other.number, other.params, "completed")
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-3)
        assert (one.seed, one.steps, one.attempts) == (other.seed, other.steps, 1)
    ends = [i for i, event in enumerate(events) if isinstance(event, TrialEnded)]
    assert sum(isinstance(event, TrialStarted) for event in events[: ends[0]]) == 3  # at once
    # What takes a second in all is not worth a measurement of more than a step.
    events.clear()
    path = study_file(**changes, storage={"artifacts": "runs-auto"})
    run(path, f"sqlite:///{tmp_path}/auto.db", events.append)
    ends = [i for i, event in enumerate(events) if isinstance(event, TrialEnded)]
    assert sum(isinstance(event, TrialStarted) for event in events[: ends[0]]) == 1
    (path,) = (tmp_path / "cache" / "stacked").iterdir()
    assert json.loads(path.read_text())["ratio"] is None
