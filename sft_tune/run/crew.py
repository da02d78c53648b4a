"""The workers of a dispatcher: which trial each has, and which of them are idle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from sft_tune.run import messages
from sft_tune.run.desk import Desk
from sft_tune.run.engine import Engine, Inbox, Worker
from sft_tune.run.events import Notice, Notify
from sft_tune.run.placement import Placement
from sft_tune.run.slots import Slot

# What a worker may keep of a trial without being replaced: caches grow, and stay.
KEPT_BYTES = 2**30


@dataclass
class Running:
    """A trial on a worker.

    Attributes:
        desk: its study.
        placement: its claim.
        heard: when its worker last said something, by the monotonic clock.
        leaving: whether it was told to save and leave.
    """

    desk: Desk
    placement: Placement
    heard: float
    leaving: bool = False


class Crew:
    """The workers on the slots of a machine; ``busy`` are those that have a trial."""

    def __init__(
        self, engine: Engine, slots: Sequence[Slot], inbox: Inbox, idle: Sequence[Worker] = ()
    ) -> None:
        """Place workers of ``engine`` on ``slots``, to report to ``inbox``; ``idle`` are there."""
        self.slots = slots
        self.busy: dict[Worker, Running] = {}
        self._engine = engine
        self._inbox = inbox
        self._idle = list(idle)
        self._kept: dict[Worker, int] = {}

    @property
    def workers(self) -> list[Worker]:
        """The worker processes at this moment."""
        return [*self.busy, *self._idle]

    @property
    def has_room(self) -> bool:
        """Whether a slot is without a trial."""
        return len(self.busy) < len(self.slots)

    def take(self) -> Worker:
        """Return an idle worker, or a new one on a slot that has none."""
        if self._idle:
            return self._idle.pop()
        taken = {worker.slot for worker in self.busy}
        return self.spawn(next(slot for slot in self.slots if slot not in taken))

    def spawn(self, slot: Slot) -> Worker:
        """Start a worker on ``slot``."""
        return self._engine.spawn(slot, self._inbox)

    def rest(self, worker: Worker) -> None:
        """Let ``worker`` wait for a trial."""
        self._idle.append(worker)

    def start(self, worker: Worker, desk: Desk, placement: Placement) -> None:
        """Have ``worker`` train ``placement``, an attempt that has begun."""
        self.busy[worker] = Running(desk, placement, time.monotonic())
        worker.send(
            messages.train(
                placement.local_config,
                placement.folder,
                worker.slot,
                desk.spec.resources,
                url=placement.url,
                prepared=placement.prepared,
                with_test=placement.with_test,
                # What died with others is tried again by itself.
                stack=worker.slot.lane > 0 and placement.attempt == 1,
                kept_from=placement.kept_from,
            )
        )

    def free(self, worker: Worker, kept: int, notify: Notify) -> None:
        """Let ``worker`` serve the next trial, or replace it when it keeps too much memory.

        Args:
            worker: one that is busy; its trial has ended.
            kept: what it still keeps of it, in bytes.
            notify: is told that it is replaced.
        """
        del self.busy[worker]
        usual = self._kept.setdefault(worker, kept)
        if kept <= usual + KEPT_BYTES:
            self._idle.append(worker)
            return
        notify(
            Notice(
                f"the worker on {worker.slot.label} keeps {kept / 2**30:.1f} GiB after its trial "
                f"({usual / 2**30:.1f} after its first): it is replaced"
            )
        )
        worker.kill()

    def lose(self, worker: Worker) -> Running | None:
        """Strike ``worker``, which died, off; return the trial that it had."""
        self._kept.pop(worker, None)
        return self._strike(worker)

    def drop(self, worker: Worker) -> Running | None:
        """Have ``worker`` let go of its trial, unsaved, and serve no other; return that trial."""
        running = self._strike(worker)
        worker.drop()
        return running

    def _strike(self, worker: Worker) -> Running | None:
        if worker in self._idle:
            self._idle.remove(worker)
        return self.busy.pop(worker, None)

    def close(self) -> None:
        """Kill those that are busy, end the idle ones, and give the trials back.

        In this order: where the database is away, no worker is left behind.
        """
        for worker in self.busy:
            worker.kill()
        # Told first, waited for second: they go at the same time.
        for worker in self._idle:
            worker.send(messages.QUIT)
        for worker in self._idle:
            worker.close()
        for running in self.busy.values():
            running.desk.ledger.give_back(running.placement)
