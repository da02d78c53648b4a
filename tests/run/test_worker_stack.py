"""The worker's side of a stack, over a channel that a runner of this process holds."""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sft_tune.run import messages
from sft_tune.run.channel import Channel, Message
from sft_tune.run.slots import Slot
from sft_tune.run.worker_stack import train_stacked
from sft_tune.spec.config import assemble
from sft_tune.spec.load import load_study
from sft_tune.trial.convnet import ConvNet
from sft_tune.trial.stack import rows
from sft_tune.trial.stack.rows import Rows


class Runner(Channel):
    """Sends commands, lets trials go on but those to be pruned, and keeps what it is told.

    While it thinks, verdicts come when they are waited for.
    """

    def __init__(self) -> None:
        """Begin without a process at the other end."""
        self.commands: queue.Queue[Message] = queue.Queue()
        self._verdicts: dict[int | None, queue.Queue[bool]] = defaultdict(queue.Queue)
        self._stopping: set[int | None] = set()
        self._dropped: set[int | None] = set()
        self._news = threading.Event()
        self._spoke = time.monotonic()
        self.told: list[tuple[str, int | None]] = []
        self.reasons: dict[int | None, str] = {}
        self.pruned: list[int] = []
        self.thinks = False
        self.owed: list[int | None] = []

    def send(self, event: str, *, lane: int | None = None, **content: Any) -> None:
        self.told.append((event, lane))
        self.reasons[lane] = content.get("reason", "")
        if event == "evaluation":
            self.owed.append(lane)
            if not self.thinks:
                self.answer(lane)

    def answer(self, lane: int | None) -> None:
        self.owed.remove(lane)
        self._take({"do": "verdict", "go_on": lane not in self.pruned, "lane": lane})

    def awaited(self, lane: int | None) -> bool:
        if lane in self.owed:
            self.answer(lane)
        return super().awaited(lane)

    def ended(self) -> set[tuple[str, int | None]]:
        return {one for one in self.told if one[0] in ("outcome", "error")}


@pytest.fixture
def commands(study_file: Callable[..., Path], tmp_path: Path) -> list[Message]:
    """Return the commands to train three heads as a stack."""
    torch.manual_seed(0)
    weights = tmp_path / "convnet.safetensors"
    save_file(ConvNet(10).state_dict(), weights)
    path = study_file(model={"weights": str(weights)}, training={"freeze": "backbone"})
    spec = load_study(path).spec
    found = []
    for number in range(3):
        config = assemble(spec, {"learning_rate": 0.01, "epochs": 4}, number)
        slot = Slot(0, None, 1)
        folder = tmp_path / f"trial-{number}"
        found.append(
            {**messages.train(config, folder, slot, spec.resources, stack=True), "lane": number}
        )
    return found


def out_of_memory(*_: object) -> torch.Tensor:
    return torch.empty(2**60)


def run_out(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Have memory run out in step ``at`` of three trials together."""
    plain, steps = Rows.step, []

    def step(stack: Rows, *given: Any) -> torch.Tensor:
        steps.append(len(stack.weights))
        return out_of_memory() if steps.count(3) == at else plain(stack, *given)

    monkeypatch.setattr(Rows, "step", step)


def test_a_trial_for_which_memory_runs_out_as_it_enters_waits_for_its_turn_alone(
    commands: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner()
    plain, entered = rows._multipliers, []

    def multipliers(given: Any, device: torch.device) -> torch.Tensor:
        entered.append(len(given))
        return out_of_memory() if entered[:2] == [1, 2] == entered else plain(given, device)

    monkeypatch.setattr(rows, "_multipliers", multipliers)
    for command in commands[1:]:
        runner.commands.put(command)
    left = train_stacked(runner, commands[0])
    # The one after it, too: it may not overtake.
    assert [command["lane"] for command in left] == [1, 2]
    assert runner.ended() == {("outcome", 0)}


def test_where_memory_runs_out_as_a_stack_trains_all_go_on_alone(
    commands: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner()
    run_out(monkeypatch, at=3)
    for command in commands[1:]:
        runner.commands.put(command)
    left = train_stacked(runner, commands[0])
    assert sorted(command["lane"] for command in left) == [0, 1, 2]
    assert not runner.ended()


def test_a_fault_of_ours_as_a_stack_trains_is_told_of_every_trial(
    commands: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner()

    def step(stack: Rows, *_: Any) -> torch.Tensor:
        raise RuntimeError("something else")

    monkeypatch.setattr(Rows, "step", step)
    for command in commands[1:]:
        runner.commands.put(command)
    assert train_stacked(runner, commands[0]) == []
    assert runner.ended() == {("error", 0), ("error", 1), ("error", 2)}


def test_no_verdict_of_a_stack_is_left_for_the_rungs_of_its_trials_alone(
    commands: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner()
    runner.thinks = True
    run_out(monkeypatch, at=6)
    for command in commands[1:]:
        runner.commands.put(command)
    assert len(train_stacked(runner, commands[0])) == 3
    assert [event for event, _ in runner.told] == ["evaluation"] * 3
    assert runner.owed == [] and [runner.verdict(lane) for lane in range(3)] == [None] * 3


def test_a_trial_has_ended_though_memory_runs_out_as_it_leaves(
    commands: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Runner()
    runner.pruned = [0]
    plain, sizes = rows._multipliers, []

    def multipliers(given: Any, device: torch.device) -> torch.Tensor:
        sizes.append(len(given))
        return out_of_memory() if sizes == [1, 2, 3, 2] else plain(given, device)

    monkeypatch.setattr(rows, "_multipliers", multipliers)
    for command in commands[1:]:
        runner.commands.put(command)
    left = train_stacked(runner, commands[0])
    assert [command["lane"] for command in left] == [1, 2]
    assert runner.ended() == {("outcome", 0)} and runner.reasons[0] == "pruned"


@pytest.mark.parametrize("pruned", [[0], []])
def test_a_trial_that_diverges_after_its_rung_ends_as_it_would_alone(
    commands: list[Message], monkeypatch: pytest.MonkeyPatch, pruned: list[int]
) -> None:
    runner = Runner()
    runner.thinks, runner.pruned = True, pruned
    plain, steps = Rows.step, []

    def step(stack: Rows, *given: Any) -> torch.Tensor:
        norms = plain(stack, *given)
        steps.append(len(stack.weights))
        if steps[-1] == 3 and steps.count(3) == 6:
            norms[0] = torch.nan
            runner.thinks = False
            for lane in range(3):
                runner.answer(lane)
        return norms

    monkeypatch.setattr(Rows, "step", step)
    for command in commands[1:]:
        runner.commands.put(command)
    assert train_stacked(runner, commands[0]) == []
    assert runner.reasons == {0: "pruned" if pruned else "diverged", 1: "completed", 2: "completed"}
