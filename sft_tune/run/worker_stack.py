"""The worker's side of a stack: trials that a runner sends one by one train together."""

from __future__ import annotations

import contextlib
import queue
from pathlib import Path

from sft_tune.run.assignment import Assignment, describe
from sft_tune.run.channel import Channel, DroppedError, Message
from sft_tune.trial.device import confine, is_out_of_memory
from sft_tune.trial.outcome import Outcome
from sft_tune.trial.stack.shared import NotStackableError
from sft_tune.trial.stack.trials import Stack


def train_stacked(channel: Channel, command: Message) -> list[Message]:
    """Train the trial of ``command``, and with it those that come meanwhile, until all have ended.

    Returns:
        Commands that are to be carried out alone, now that nothing trains: trials that cannot be
        in the stack, and those that came after one of them, or for which memory ran out.
    """
    confine(command["threads"], command["memory_share"])
    return _Together(channel, command).run(command)


class _Together:
    """A stack, and the assignments of its trials."""

    def __init__(self, channel: Channel, command: Message) -> None:
        self._channel = channel
        self._stack: Stack[int | None] = Stack(
            command["device"],
            Path(command["cache"]),
            checkpoint_seconds=command["checkpoint_seconds"],
            evaluation_batch_size=command["evaluation_batch_size"],
            keep=command["keep"],
            wake=channel.wake,
        )
        self._trials: dict[int | None, Assignment] = {}
        self._left: list[Message] = []

    def run(self, command: Message) -> list[Message]:
        self._enter(command)
        while len(self._stack):
            try:
                self._listen()
                if not self._stack.trains:
                    self._channel.wait()
                ended = self._stack.work()
            except (RuntimeError, MemoryError) as error:
                self._finish(self._stack.ended())
                if not is_out_of_memory(error):
                    self._fail(error)
                    break
                self._await_verdicts()
                self._left += [trial.command for trial in self._trials.values()]
                break
            self._finish(ended)
        return self._left

    def _await_verdicts(self) -> None:
        """Wait for the verdicts that are on their way: alone, trials report these rungs anew."""
        for lane, trial in self._trials.items():
            with contextlib.suppress(DroppedError):
                for _ in range(trial.unanswered):
                    self._channel.awaited(lane)

    def _finish(self, ended: list[tuple[int | None, Outcome | Exception]]) -> None:
        """Say how trials have ended."""
        for lane, outcome in ended:
            trial = self._trials.pop(lane)
            if isinstance(outcome, Exception):
                trial.loggers.close("crashed")
                self._channel.send("error", lane=lane, **describe(outcome))
                continue
            with trial.loggers.closed_on_error():
                # What the process holds is the stack's, not this trial's.
                trial.finish(outcome, trial.config, lambda: 0)

    def _listen(self) -> None:
        """Take in what the runner has said since it was last asked."""
        while True:
            try:
                command = self._channel.commands.get_nowait()
            except queue.Empty:
                break
            self._enter(command)
        for lane in list(self._trials):
            go_on = self._channel.verdict(lane)
            if go_on is not None:
                self._trials[lane].unanswered -= 1
                self._stack.answer(lane, go_on)
            if self._channel.should_stop(lane):
                self._stack.stop(lane)
            if self._channel.is_dropped(lane):
                self._stack.drop(lane)
                self._trials.pop(lane).loggers.close("stopped")

    def _enter(self, command: Message) -> None:
        """Let a trial in; once one has to wait for its turn alone, so do those after it."""
        if self._channel.is_dropped(command.get("lane")):
            return
        if self._left or command["do"] != "train" or not command["stack"]:
            self._left.append(command)
            return
        lane: int | None = command.get("lane")
        try:
            trial = Assignment(self._channel, command)
            with trial.errors(), trial.loggers.closed_on_error():
                self._stack.enter(
                    lane,
                    trial.config,
                    trial.paths,
                    trial.send,
                    trial.mirror,
                    command["kept_from"],
                )
        except Exception as error:  # the border: the runner hears of every failure
            if isinstance(error, NotStackableError) or is_out_of_memory(error):
                self._left.append(command)
            else:
                self._channel.send("error", lane=lane, **describe(error))
        else:
            self._trials[lane] = trial

    def _fail(self, error: Exception) -> None:
        """Say of every trial that it failed."""
        for lane in self._trials:
            self._channel.send("error", lane=lane, **describe(error))
