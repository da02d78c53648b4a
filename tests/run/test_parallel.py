"""Several workers, several runners: what a study must keep however its trials are dealt out."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sft_tune.cli.app import app
from sft_tune.run import calibrate, crew, dispatcher
from sft_tune.run.dispatcher import Dispatcher
from sft_tune.run.engine import LocalWorker
from sft_tune.run.events import Event, Notice, RungReached, TrialEnded, TrialStarted
from sft_tune.run.study import Ended, start_study
from sft_tune.spec.load import load_study
from sft_tune.store import control, reads
from sft_tune.store.database import Database
from sft_tune.store.records import find_study

StudyFile = Callable[..., Path]
URL = "sqlite:///t.db"


def start(
    path: Path, url: str = URL, listen: Callable[[Event], None] = lambda event: None, **options: Any
) -> tuple[Ended, list[Event]]:
    events: list[Event] = []

    def notify(event: Event) -> None:
        events.append(event)
        listen(event)

    db = Database.open(url, create=True)
    try:
        return start_study(load_study(path), db, notify=notify, **options), events
    finally:
        db.dispose()


def rows(url: str = URL) -> list[reads.TrialRow]:
    db = Database.open(url, create=False)
    try:
        return reads.trial_rows(db, "tiny")
    finally:
        db.dispose()


def ask(wish: Callable[[Database, int], object], url: str = URL) -> None:
    """Do what another shell would, on a connection of its own."""
    db = Database.open(url, create=False)
    try:
        wish(db, find_study(db, "tiny").id)
    finally:
        db.dispose()


LONG = {
    "training": {"epochs": 20},
    "space": {"learning_rate": {"low": 1e-3, "high": 1e-2}},
}
"""Trials of some seconds, for what has to happen in the middle of one."""

GRID = {
    "training": {"learning_rate": 1e-3, "epochs": 1},
    "sampler": {"name": "grid"},
    "space": {"learning_rate": [1e-4, 1e-3, 1e-2], "epochs": [1, 2, 3]},
    "budget": None,
}


def test_two_workers_give_each_configuration_the_value_that_one_gives(
    study_file: StudyFile, tmp_path: Path
) -> None:
    values = []
    for count in (1, 2):
        url = f"sqlite:///{tmp_path}/{count}.db"
        _, events = start(study_file(**GRID, resources={"trials_per_device": count}), url)
        trials = rows(url)
        assert [t.number for t in trials] == list(range(9))
        assert {t.device for t in trials} == ({"CPU"} if count == 1 else {"CPU #1", "CPU #2"})
        values.append({json.dumps(t.params): (t.value, t.metrics, t.seed) for t in trials})
        slots = {e.slot for e in events if isinstance(e, TrialStarted)}
        assert slots == set(range(count))
    assert values[0] == values[1]


def test_a_worker_that_is_killed_loses_nothing_while_the_other_goes_on(
    study_file: StudyFile,
) -> None:
    runner: list[Dispatcher] = []
    killed: list[int] = []

    def kill(event: Event) -> None:
        if isinstance(event, RungReached) and event.number == 2 and not killed:
            for worker in runner[0].workers:
                assert isinstance(worker, LocalWorker)
                if worker.slot.index == event.slot:
                    killed.append(event.slot)
                    os.kill(worker.pid, signal.SIGKILL)

    _, events = start(
        study_file(resources={"trials_per_device": 2}, budget={"trials": 6}),
        listen=kill,
        on_dispatcher=runner.append,
    )
    assert killed
    assert [t.reason for t in rows()] == ["completed"] * 6
    assert rows()[2].attempts == 2
    assert "attempt 1: the worker was killed by SIGKILL" in (rows()[2].error or "")
    again = [e for e in events if isinstance(e, TrialStarted) and e.number == 2]
    assert [e.attempt for e in again] == [1, 2]


def test_two_runners_share_one_study_and_its_budget(study_file: StudyFile) -> None:
    path = study_file(budget={"trials": 8})
    second: list[threading.Thread] = []
    ended: list[Ended] = []

    def join_in(event: Event) -> None:
        if isinstance(event, TrialStarted) and not second:
            thread = threading.Thread(target=lambda: ended.append(start(path)[0]))
            second.append(thread)
            thread.start()

    start(path, listen=join_in)
    second[0].join()
    trials = rows()
    assert [t.number for t in trials] == list(range(8))
    assert {t.state for t in trials} == {"COMPLETE"}
    assert ended[0].why in ("trials", "finished")


def test_stop_from_another_shell_saves_and_start_goes_on(
    study_file: StudyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "WISH_SECONDS", 0.02)
    path = study_file(**LONG)

    def stop(event: Event) -> None:
        if isinstance(event, RungReached) and event.number == 1 and event.progress == 25:
            ask(lambda db, study: control.want(db, study, "stopped"))

    ended, events = start(path, listen=stop)
    assert ended.why == "stopped"
    assert any(isinstance(e, Notice) and "trial 1 saved at step" in e.text for e in events)
    assert rows()[1].phase == "interrupted"
    ended, events = start(path)
    assert ended.why == "trials"
    assert next(e for e in events if isinstance(e, TrialStarted)).number == 1
    assert (
        [t.reason for t in rows()].count("completed")
        + [t.reason for t in rows()].count("duplicate")
        == len(rows())
        == 4
    )


def test_what_another_shell_wishes_of_a_running_study_is_done(
    study_file: StudyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trial 1 is stopped, a configuration enqueued, the study paused in it and resumed."""
    monkeypatch.setattr(dispatcher, "WISH_SECONDS", 0.02)
    wanted = {"learning_rate": 2e-3}
    seen: list[str] = []

    def once(what: str, wish: Callable[[Database, int], object]) -> None:
        if what not in seen:
            seen.append(what)
            ask(wish)

    def watch(event: Event) -> None:
        if isinstance(event, RungReached) and event.number == 1:
            once("stop", lambda db, study: control.stop_trial(db, study, 1))
            once("enqueue", lambda db, study: control.enqueue(db, study, [wanted], now=1.0))
        if isinstance(event, RungReached) and event.number == 2:
            once("pause", lambda db, study: control.want(db, study, "paused"))
        if isinstance(event, Notice) and event.text.startswith("paused"):
            assert {t.phase for t in rows()[:3]} <= {"ended", "interrupted"}
            once("resume", lambda db, study: control.want(db, study, None))

    ended, _ = start(study_file(**LONG, budget={"trials": 3}), listen=watch)
    assert seen == ["stop", "enqueue", "pause", "resume"]
    assert ended.why == "trials"
    trials = rows()
    assert [t.reason for t in trials] == ["completed", "stopped", "completed", "completed"]
    assert trials[1].state == "PRUNED"  # the sampler learns from its rungs
    # Next, and on top of the budget.
    assert trials[2].params == wanted and len(trials) == 3 + 1


def test_what_was_asked_for_leaves_a_grid_its_cells(study_file: StudyFile) -> None:
    wanted = {"learning_rate": 1e-2, "epochs": 2}

    def want(event: Event) -> None:
        if isinstance(event, TrialStarted) and event.number == 1:
            ask(lambda db, study: control.enqueue(db, study, [wanted], now=1.0))

    start(study_file(**GRID), listen=want)
    trials = rows()
    # Nine cells, the default among them, and the one asked for: its cell is then a duplicate.
    assert len(trials) == 10
    assert trials[2].params == wanted
    tried = [json.dumps(t.params) for t in trials if t.reason == "completed"]
    assert len(tried) == len(set(tried)) == 9


def test_failed_trials_are_tried_again_once(study_file: StudyFile) -> None:
    runner: list[Dispatcher] = []

    def kill(event: Event) -> None:
        if isinstance(event, TrialStarted) and event.number == 1:
            for worker in runner[0].workers:
                assert isinstance(worker, LocalWorker)
                os.kill(worker.pid, signal.SIGKILL)

    path = study_file(resources={"max_attempts": 1})
    start(path, listen=kill, on_dispatcher=runner.append)
    failed = rows()[1]
    assert (failed.reason, failed.state) == ("crashed", "FAIL")

    def again(db: Database, study: int) -> int:
        return control.enqueue(db, study, [failed.params], now=1.0, retry_of=[1])

    asked: list[int] = []
    ask(lambda db, study: asked.extend((again(db, study), again(db, study))))
    assert asked == [1, 0]
    ended, _ = start(path)
    assert ended.why == "trials"
    assert len(rows()) == 5
    assert (rows()[4].reason, rows()[4].params) == ("completed", failed.params)


def test_a_trial_that_reports_nothing_is_killed_and_started_again(
    study_file: StudyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "WISH_SECONDS", 0.05)
    runner: list[Dispatcher] = []
    stopped: list[int] = []

    def freeze(event: Event) -> None:
        if isinstance(event, RungReached) and event.number == 1 and not stopped:
            for worker in runner[0].workers:
                assert isinstance(worker, LocalWorker)
                stopped.append(worker.pid)
                os.kill(worker.pid, signal.SIGSTOP)

    path = study_file(**LONG, resources={"stall_minutes": 8 / 60})
    _, events = start(path, listen=freeze, on_dispatcher=runner.append)
    assert stopped
    assert rows()[1].attempts == 2
    assert "reported nothing" in (rows()[1].error or "")
    assert [t.reason for t in rows()] == ["completed"] * 4


def test_a_runner_that_dies_with_a_trial_too_often_fails_it(study_file: StudyFile) -> None:
    """The attempts of a trial count over runners; its errors name who was lost."""
    path = study_file(resources={"max_attempts": 1})
    db = Database.open(URL, create=True)
    start(path)
    from sft_tune.store import claims

    study = find_study(db, "tiny")
    lost = claims.claim_new(
        db, study.id, owner="elsewhere:1:1.0", now=0.0, lease_seconds=1.0, limit=9
    )
    assert lost is not None
    claims.begin(
        db, lost, config=_config(rows()[0]), params=rows()[1].params, device=None, host=None, now=0
    )
    db.dispose()
    ended, _ = start(study_file(resources={"max_attempts": 1}, budget={"trials": 5}))
    assert ended.why == "trials"
    trial = rows()[4]
    assert (trial.reason, trial.state) == ("crashed", "FAIL")
    assert "its runner elsewhere:1:1.0 was lost" in (trial.error or "")


def _config(row: reads.TrialRow) -> Any:
    from sft_tune.spec.config import TrialConfig

    return TrialConfig.model_validate(row.config)


def test_the_number_of_workers_on_a_cpu_is_measured_once(
    study_file: StudyFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "cache"))
    path = study_file(resources={"trials_per_device": None, "threads_per_trial": None})
    _, events = start(path)
    (note,) = (tmp_path / "cache").glob("cpu_workers.json")
    (count,) = json.loads(note.read_text()).values()
    used = {e.slot for e in events if isinstance(e, TrialStarted)}
    assert used == set(range(count))
    monkeypatch.setattr(calibrate, "_search", None)  # not called again
    ended, _ = start(
        study_file(
            resources={"trials_per_device": None, "threads_per_trial": None}, budget={"trials": 5}
        )
    )
    assert ended.why == "trials"
    assert [t.reason for t in rows()] == ["completed"] * 5


def test_a_worker_that_keeps_memory_is_replaced(
    study_file: StudyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "KEPT_BYTES", -1)
    pids: set[int] = set()
    runner: list[Dispatcher] = []

    def note(event: Event) -> None:
        if isinstance(event, TrialEnded | RungReached):
            pids.update(w.pid for w in runner[0].workers if isinstance(w, LocalWorker))

    _, events = start(study_file(budget={"trials": 2}), listen=note, on_dispatcher=runner.append)
    assert len(pids) == 2
    assert any(isinstance(e, Notice) and "it is replaced" in e.text for e in events)
    assert [t.reason for t in rows()] == ["completed"] * 2


ONE_LONG = {
    "training": {"epochs": 1},
    "sampler": {"name": "grid"},
    "space": {"epochs": [1, 3000]},
    "resources": {"trials_per_device": 2},
}
"""The default configuration, and beside it a trial that does not end by itself."""


def test_a_target_that_is_reached_ends_the_trials_that_run(study_file: StudyFile) -> None:
    ended, events = start(study_file(**ONE_LONG, budget={"target": 0.01}))
    assert ended.why == "target"
    default, long = rows()
    assert (default.number, default.reason) == (0, "completed")
    assert (long.number, long.reason, long.duplicate_of) == (1, "stopped", None)
    assert (long.note or "").startswith("the target is reached, after step ")
    assert [e.reason for e in events if isinstance(e, TrialEnded)] == ["completed", "stopped"]
    told = CliRunner().invoke(app, ["retry", "tiny", "--failed", "--storage", URL])
    assert told.output == "0 failed trials to be tried again\n"


def test_a_trial_that_was_left_does_not_go_on_when_the_target_is_reached(
    study_file: StudyFile,
) -> None:
    runner: list[Dispatcher] = []

    def stop(event: Event) -> None:
        if isinstance(event, TrialEnded):
            runner[0].stop()

    first, _ = start(study_file(**ONE_LONG, budget=None), listen=stop, on_dispatcher=runner.append)
    assert first.why == "stopped"
    again, events = start(study_file(**ONE_LONG, budget={"target": 0.01}))
    assert again.why == "target"
    assert not [event for event in events if isinstance(event, TrialStarted)]
    assert rows()[1].note == "the target is reached, before it went on"
