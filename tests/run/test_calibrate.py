"""How many trials run at once on a CPU: which counts are tried, and how long that is known."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sft_tune.run import calibrate
from sft_tune.run.calibrate import best_cpu_workers
from sft_tune.run.engine import Inbox, LocalEngine, Worker
from sft_tune.run.events import Event, Notice, TrialStarted
from sft_tune.run.messages import Message
from sft_tune.run.register import configs_to_check
from sft_tune.run.serve import serve
from sft_tune.run.slots import Slot, find_slots
from sft_tune.run.study import submit_study
from sft_tune.spec.load import load_study
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord, find_study

StudyFile = Callable[..., Path]
OPEN = {"trials_per_device": None, "threads_per_trial": None}
# Memory is no matter here, whatever processes other tests have left.
CPU = ResourcesSpec(devices="cpu", memory_per_trial=0.01)


class Machine:
    """An engine whose workers do, together, so many samples a second as ``rates`` say."""

    name = "local"

    def __init__(self, rates: dict[int, float]) -> None:
        self.rates = rates
        self.tried: list[int] = []
        self.closed: list[Worker] = []
        self.measuring: list[Worker] = []

    def spawn(self, slot: Slot, inbox: Inbox) -> Worker:
        return Measured(self, slot, inbox)

    def close(self) -> None:
        pass


class Measured:
    """A worker of a `Machine`."""

    def __init__(self, machine: Machine, slot: Slot, inbox: Inbox) -> None:
        self.slot, self._machine, self._inbox = slot, machine, inbox

    def send(self, message: Message) -> None:
        at_once = self._machine.measuring
        if message["do"] == "measure":
            at_once.append(self)
            self._inbox.put((self, {"event": "armed"}))
            return
        if at_once[0] is self:
            self._machine.tried.append(len(at_once))
        rate = self._machine.rates[len(at_once)] / len(at_once)
        self._inbox.put((self, {"event": "measured", "rate": rate}))
        if at_once[-1] is self:
            self._machine.measuring = []

    def close(self, patience: float = 10.0) -> None:
        self._machine.closed.append(self)

    kill = drop = close


@pytest.fixture
def record(study_file: StudyFile) -> Iterator[StudyRecord]:
    db = Database.open("sqlite:///t.db", create=True)
    submit_study(load_study(study_file(resources=OPEN)), db, check=False)
    yield find_study(db, "tiny")
    db.dispose()


def best(
    record: StudyRecord,
    engine: Any,
    idle: list[Worker],
    lora_rank: int | None = None,
    **training: Any,
) -> int:
    (config,) = configs_to_check(record.spec)
    sections = {
        "training": config.training.model_copy(update=training),
        "model": config.model.model_copy(update={"lora_rank": lora_rank}),
    }
    config = config.model_copy(update=sections)
    return best_cpu_workers(record, config, CPU, engine, queue.SimpleQueue(), idle)


@pytest.mark.parametrize(
    ("rates", "tried", "found"),
    [
        ({1: 100, 2: 120, 4: 144, 8: 170, 16: 171}, [1, 2, 4, 8, 16], 8),
        # Few more are tried after a count that gained nothing, where they make up for it.
        ({1: 100, 2: 103, 4: 130, 8: 131}, [1, 2, 4, 8], 4),
        ({1: 100, 2: 103, 4: 109}, [1, 2, 4], 1),
        ({1: 100, 2: 120, 4: 122, 8: 150, 16: 250, 32: 251}, [1, 2, 4, 8, 16, 32], 16),
    ],
)
def test_counts_are_tried_until_more_at_once_gain_nothing(
    record: StudyRecord,
    monkeypatch: pytest.MonkeyPatch,
    rates: dict[int, float],
    tried: list[int],
    found: int,
) -> None:
    monkeypatch.setattr(calibrate, "available_cores", lambda: 64)
    machine = Machine(rates)
    assert best(record, machine, []) == found
    assert machine.tried == tried
    again = Machine({})
    assert best(record, again, []) == found and not again.tried


def test_what_decides_the_time_of_a_step_is_measured_anew(
    record: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "available_cores", lambda: 1)
    machine = Machine({1: 100})

    def measured(**settings: Any) -> bool:
        machine.tried.clear()
        best(record, machine, [], **settings)
        return bool(machine.tried)

    assert measured() and not measured()
    assert not measured(learning_rate=0.5) and not measured(epochs=9)
    for name, value in {
        "optimizer": "muon",
        "augment": "flip_crop",
        "auto_augment": "randaugment",
        "gradient_checkpointing": True,
        "freeze": "backbone",
        "batch_size": 3,
        "lora_rank": 4,
    }.items():
        assert measured(**{name: value}) and not measured(**{name: value}), name
    assert not measured()
    monkeypatch.setattr(calibrate.importlib.metadata, "version", lambda _: "3.0")
    assert measured() and not measured()


def test_workers_that_wait_for_one_that_failed_are_replaced(
    record: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "available_cores", lambda: 2)

    class Failing(Machine):
        def spawn(self, slot: Slot, inbox: Inbox) -> Worker:
            worker = super().spawn(slot, inbox)
            if slot.index == 1:
                inbox.put((worker, {"event": "error", "message": "no"}))
            return worker

    machine, idle = Failing({1: 100.0, 2: 200.0}), list[Worker]()
    assert best(record, machine, idle) == 1
    assert idle == [] and len(machine.closed) == 2
    assert best(record, Machine({1: 100.0, 2: 200.0}), []) == 2  # nothing was remembered


def served(folder: Path, resources: ResourcesSpec) -> tuple[list[str], set[int]]:
    """Serve the open study "tiny"; return what is said of it, and the slots of its trials."""
    events: list[Event] = []
    db = Database.open("sqlite:///t.db", create=False)
    try:
        why = serve(
            db,
            LocalEngine(folder / "workers"),
            find_slots(resources),
            queue.SimpleQueue(),
            lambda _, event: events.append(event),
            only="tiny",
            resources=resources,
            idle_seconds=0,
        )
    finally:
        db.dispose()
    assert why == "idle"
    said = [event.text for event in events if isinstance(event, Notice)]
    return said, {event.slot for event in events if isinstance(event, TrialStarted)}


@pytest.mark.parametrize(
    ("options", "study", "slots"),
    [
        ({}, OPEN, {0, 1}),
        ({"threads_per_trial": 1}, OPEN, {0}),
        ({"trials_per_device": 1}, OPEN, {0}),
        ({}, {"trials_per_device": 1, "threads_per_trial": None}, {0}),
        ({}, {**OPEN, "memory_per_trial": 0.6 * psutil.virtual_memory().total / 2**30}, {0}),
    ],
    ids=["open", "threads", "trials", "study", "memory"],
)
def test_a_worker_of_one_study_measures_what_nobody_has_said(
    study_file: StudyFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    study: dict[str, Any],
    slots: set[int],
) -> None:
    db = Database.open("sqlite:///t.db", create=True)
    submit_study(load_study(study_file(resources=study, budget={"trials": 2})), db, check=False)
    db.dispose()
    monkeypatch.setattr(calibrate, "_search", lambda *_: 2)
    said, used = served(tmp_path, CPU.model_copy(update=options))
    assert used == slots
    assert ("2 at once on the CPU, as a measurement finds fastest" in said) == (len(slots) == 2)
