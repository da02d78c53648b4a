"""What every engine promises, on real processes and a real local Ray."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sft_tune.errors import UserError
from sft_tune.run import messages
from sft_tune.run.engine import GONE, Engine, Inbox, LocalEngine
from sft_tune.run.events import Event, RungReached, TrialStarted
from sft_tune.run.slots import Slot
from sft_tune.run.study import start_study
from sft_tune.spec.config import TrialConfig, assemble, default_params
from sft_tune.spec.load import load_study
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.store import reads
from sft_tune.store.database import Database

PATIENCE = 120


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "local":
        yield LocalEngine(tmp_path)
        return
    pytest.importorskip("ray")
    from sft_tune.run.ray_engine import RayEngine

    made = RayEngine(ResourcesSpec(engine="ray", devices="cpu"))
    try:
        yield made
    finally:
        made.close()


def until(inbox: Inbox, event: str) -> dict[str, Any]:
    while True:
        _, message = inbox.get(timeout=PATIENCE)
        if message["event"] == event:
            return message
        assert message["event"] != GONE, message


@pytest.fixture
def config(study_file: Callable[..., Path]) -> TrialConfig:
    spec = load_study(study_file()).spec
    return assemble(spec, default_params(spec), 0)


def test_a_worker_trains_speaks_and_goes(
    engine: Engine, config: TrialConfig, tmp_path: Path
) -> None:
    inbox: Inbox = queue.SimpleQueue()
    worker = engine.spawn(Slot(0, None, 1), inbox)
    pid = until(inbox, "ready")["pid"]
    worker.send(messages.train(config, tmp_path / "t", worker.slot, ResourcesSpec()))
    values = []
    for _ in range(4):
        values.append(until(inbox, "evaluation")["progress"])
        worker.send(messages.verdict(True))
    outcome = until(inbox, "outcome")
    assert values == [25, 50, 75, 100]
    assert outcome["reason"] == "completed"
    assert Path(outcome["checkpoint"]).is_file()
    worker.close()
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=PATIENCE)
    assert not psutil.pid_exists(pid)


def test_a_worker_that_is_killed_says_so_with_its_signal(engine: Engine) -> None:
    inbox: Inbox = queue.SimpleQueue()
    worker = engine.spawn(Slot(0, None, 1), inbox)
    os.kill(until(inbox, "ready")["pid"], signal.SIGKILL)
    _, message = inbox.get(timeout=PATIENCE)
    assert (message["event"], "SIGKILL" in message["how"]) == (GONE, True)
    worker.send(messages.STOP)  # nobody listens, nothing is raised
    worker.close()


def test_kill_ends_the_process(engine: Engine) -> None:
    inbox: Inbox = queue.SimpleQueue()
    worker = engine.spawn(Slot(0, None, 1), inbox)
    process = psutil.Process(until(inbox, "ready")["pid"])
    worker.kill()
    _, message = inbox.get(timeout=PATIENCE)
    assert message["event"] == GONE
    gone, alive = psutil.wait_procs([process], timeout=PATIENCE)
    assert not alive


def test_a_study_on_ray_survives_the_loss_of_an_actor(
    study_file: Callable[..., Path], tmp_path: Path
) -> None:
    """The process that Ray runs the actor in dies, and its trial goes on under its number."""
    pytest.importorskip("ray")
    path = study_file(
        resources={"engine": "ray", "trials_per_device": 2},
        training={"epochs": 20},
        space={"learning_rate": {"low": 1e-3, "high": 1e-2}},
    )
    killed: list[int] = []
    events: list[Event] = []

    def kill(event: Event) -> None:
        events.append(event)
        if isinstance(event, RungReached) and event.number == 1 and not killed:
            for process in psutil.process_iter(["cmdline"]):
                if "ray::SftTuneWorker" in " ".join(process.info["cmdline"] or []):
                    killed.append(process.pid)
                    process.kill()

    db = Database.open(f"sqlite:///{tmp_path}/t.db", create=True)
    ended = start_study(load_study(path), db, notify=kill)
    rows = reads.trial_rows(db, "tiny")
    db.dispose()
    assert len(killed) == 2
    assert ended.why == "trials"
    assert [row.reason for row in rows] == ["completed"] * 4
    assert rows[1].attempts == 2
    assert "attempt 1: the worker was lost with its Ray actor" in (rows[1].error or "")
    assert {e.slot for e in events if isinstance(e, TrialStarted)} == {0, 1}


def test_a_ray_address_without_a_cluster_is_told(study_file: Callable[..., Path]) -> None:
    pytest.importorskip("ray")
    db = Database.open("sqlite:///t.db", create=True)
    loaded = load_study(study_file(resources={"engine": "ray"}))
    with pytest.raises(UserError, match="a Ray cluster must answer"):
        start_study(loaded, db, ray_address="127.0.0.1:1")
    loaded = load_study(study_file())
    with pytest.raises(UserError, match=r"--ray-address needs `resources.engine: ray`"):
        start_study(loaded, db, ray_address="127.0.0.1:1")
    db.dispose()
