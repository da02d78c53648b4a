"""Lanes: K trials on one worker process, each of them a worker to the dispatcher.

The dispatcher places trials on lanes as on workers of their own; here their messages share the two
pipes of one process, which trains them as one stack (see `sft_tune.run.worker_stack`).
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from sft_tune.run import messages
from sft_tune.run.engine import GONE, Engine, Inbox, Worker
from sft_tune.run.messages import Message
from sft_tune.run.slots import Slot


def lanes_of(slots: Sequence[Slot], count: int) -> list[Slot]:
    """Return ``count`` lanes for each of ``slots``."""
    return [replace(slot, lane=lane) for slot in slots for lane in range(1, count + 1)]


class Lane:
    """One trial's place in a process."""

    def __init__(self, lanes: Lanes, slot: Slot, process: Worker, number: int) -> None:
        """Take place ``number`` in ``process``."""
        self.slot = slot
        self.process = process
        self.number = number
        self.busy = False
        self._lanes = lanes

    def send(self, message: Message) -> None:
        """Send a command, which is for this trial."""
        self.busy = self.busy or message["do"] == "train"
        self.process.send({**message, "lane": self.number})

    def close(self, patience: float = 10.0) -> None:
        """End the process."""
        self.process.close(patience)

    def kill(self) -> None:
        """End the process at once, and with it the other trials, which are told so."""
        self._lanes.forget(self.process)
        self.process.kill()

    def drop(self) -> None:
        """Have the process forget the trial; the others go on."""
        self.send(messages.DROP)
        self._lanes.leave(self)


class Lanes:
    """An engine whose workers are lanes, and the inbox of what they say."""

    def __init__(self, engine: Engine, inbox: Inbox, idle: Sequence[Worker] = ()) -> None:
        """Place lanes on processes of ``engine``, the first ones on ``idle``.

        Args:
            engine: starts processes.
            inbox: what their events arrive in.
            idle: processes that are there already.
        """
        self.name = engine.name
        self._engine = engine
        self._inbox = inbox
        self._processes: list[Worker] = list(idle)
        self._lanes: dict[int, Lane] = {}
        self._numbers = itertools.count(1)
        self._apart: set[Slot] = set()
        """Lanes whose process died: their next one is theirs alone, whoever was at fault."""
        self._waiting: deque[tuple[Worker | None, Message]] = deque()

    def spawn(self, slot: Slot, inbox: Inbox) -> Lane:
        """Return a lane for ``slot``, on its process; that is started where there is none."""
        place = replace(slot, lane=0)
        process = None
        if slot in self._apart:
            self._apart.discard(slot)
        else:
            process = next((one for one in self._processes if one.slot == place), None)
        if process is None:
            process = self._engine.spawn(place, self._inbox)
            self._processes.append(process)
        lane = Lane(self, slot, process, next(self._numbers))
        self._lanes[lane.number] = lane
        return lane

    def forget(self, process: Worker) -> None:
        """Place no more lanes on ``process``, which ends: those that trained are tried apart."""
        self._processes = [one for one in self._processes if one is not process]
        self._apart.update(lane.slot for lane in self._of(process) if lane.busy)

    def leave(self, lane: Lane) -> None:
        """Listen no more to what ``lane`` says."""
        self._lanes.pop(lane.number, None)

    def close(self) -> None:
        """End processes that no lane is left to end, and let go of what places them."""
        for process in self._processes:
            process.close()
        self._engine.close()

    def put(self, item: tuple[Worker | None, Message]) -> None:
        """Add an event; a signal handler may do so."""
        self._inbox.put(item)

    def get(self, *, timeout: float | None = None) -> tuple[Worker | None, Message]:
        """Wait for the next event of a lane.

        Raises:
            queue.Empty: there was none for ``timeout`` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self._waiting:
            left = None if until is None else max(0.0, until - time.monotonic())
            process, message = self._inbox.get(timeout=left)
            self._waiting += self._events(process, message)
        return self._waiting.popleft()

    def _events(
        self, process: Worker | None, message: Message
    ) -> list[tuple[Worker | None, Message]]:
        """Return for each lane that ``message`` is of an event."""
        if process is None:
            return [(None, message)]
        if "lane" in message:  # of a lane that was dropped there may be last words
            lane = self._lanes.get(message["lane"])
            if lane is None:
                return []
            lane.busy = lane.busy and message["event"] not in ("outcome", "error")
            return [(lane, message)]
        lanes = self._of(process)
        if message["event"] == GONE:
            self.forget(process)
            for lane in lanes:
                self.leave(lane)
        return [(lane, message) for lane in lanes]

    def _of(self, process: Worker) -> list[Lane]:
        return [lane for lane in self._lanes.values() if lane.process is process]
