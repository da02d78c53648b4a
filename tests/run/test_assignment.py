"""A trial as its worker has it: it does not stand still for its runner."""

from __future__ import annotations

import errno
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from sft_tune.errors import TrialError
from sft_tune.run import messages
from sft_tune.run.assignment import describe, train_alone
from sft_tune.run.channel import Channel
from sft_tune.run.engine import Inbox, LocalEngine
from sft_tune.run.lanes import Lanes, lanes_of
from sft_tune.run.slots import Slot
from sft_tune.spec.config import TrialConfig, assemble, default_params
from sft_tune.spec.load import load_study
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.trial.paths import TrialPaths

SLOT = Slot(0, None, 1)


class Runner:
    """The other end of a worker's pipes: it gives each verdict after so many steps."""

    def __init__(self, steps: int) -> None:
        self.happened: list[str] = []
        self.said: dict[str, Any] = {}
        self._steps = steps
        self._left = 0

    def send(self, event: str, *, lane: int | None, **content: Any) -> None:
        self.happened.append(event)
        self.said = content
        self._left = self._steps

    def verdict(self, lane: int | None) -> bool | None:
        return True if self._left == 0 else None

    def awaited(self, lane: int | None) -> bool:
        self.happened.append("waited")
        return True

    def is_dropped(self, lane: int | None) -> bool:
        return False

    def should_stop(self, lane: int | None) -> bool:
        self.happened.append("step")
        self._left -= 1
        return False


@pytest.fixture
def config(study_file: Callable[..., Path]) -> TrialConfig:
    spec = load_study(study_file()).spec
    return assemble(spec, {**default_params(spec), "epochs": 4}, 0)


def test_a_trial_trains_on_while_its_runner_thinks(config: TrialConfig, tmp_path: Path) -> None:
    runner = Runner(steps=2)
    command = messages.train(config, tmp_path / "t", SLOT, ResourcesSpec())
    train_alone(cast(Channel, runner), command)
    rung = [*["step"] * 4, "evaluation"]
    assert runner.happened == [*rung * 4, "waited", "outcome"]
    assert 0 <= runner.said["waited"] < 0.1


@pytest.mark.parametrize(("said", "threads"), [(None, 4), (1, 1), (8, 4)])
def test_a_study_s_threads_hold_on_a_slot_that_has_more(
    config: TrialConfig, tmp_path: Path, said: int | None, threads: int
) -> None:
    slot, resources = Slot(0, None, 4), ResourcesSpec(threads_per_trial=said)
    assert messages.train(config, tmp_path / "t", slot, resources)["threads"] == threads


def test_a_full_disk_is_told_with_one_remedy() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "best.safetensors")
    said = TrialError(f"the best weights cannot be written: {full}; free space, then start again")
    said.__cause__ = full
    for error in (full, said):
        told = describe(error)
        assert told["kind"] == "StorageError"
        assert told["message"].count("free space, then start again") == 1
        assert "no trial is lost" in told["message"]


@pytest.mark.parametrize("folds", [None, 2])
def test_a_trial_that_a_lane_drops_is_left_and_does_not_hold_up_the_next(
    config: TrialConfig, tmp_path: Path, folds: int | None
) -> None:
    """One that trains on, and one of folds, which waits for its verdict where it is."""
    data = config.data.model_copy(update={"folds": folds})
    dropped = config.model_copy(update={"data": data})
    inbox: Inbox = queue.SimpleQueue()
    lanes = Lanes(LocalEngine(tmp_path), inbox)
    one, two = (lanes.spawn(slot, inbox) for slot in lanes_of([SLOT], 2))
    try:
        resources = ResourcesSpec(checkpoint_seconds=0)
        one.send(messages.train(dropped, tmp_path / "one", SLOT, resources))
        while lanes.get(timeout=120)[1]["event"] != "evaluation":
            pass
        one.drop()
        two.send(messages.train(config, tmp_path / "two", SLOT, resources))
        while (message := lanes.get(timeout=30))[1]["event"] != "outcome":
            assert message[1]["event"] != "error"
            if message[1]["event"] == "evaluation":
                two.send(messages.verdict(True))
        assert (message[0], message[1]["reason"]) == (two, "completed")
        left = TrialPaths(tmp_path / "one")
        assert not left.best.exists() and not left.resume.exists()
    finally:
        one.close()
        lanes.close()
