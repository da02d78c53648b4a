"""The worker's two pipes to its runner, and the trials that are spoken of on them."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from typing import IO, Any

Message = dict[str, Any]

PULSE_SECONDS = 5.0


class DroppedError(Exception):
    """Another runner has the trial now: it is left as it is."""


class Channel:
    """Events out; commands, verdicts and the word to stop in.

    A worker that trains several trials at once is told with each message which of them is meant,
    and says it with each event: ``lane``, a number of the runner's. It is None where there is one.
    """

    def __init__(self) -> None:
        """Take over standard output: what libraries print goes to standard error from here on."""
        self._out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf8")
        os.dup2(2, 1)
        self.commands: queue.Queue[Message] = queue.Queue()
        self._verdicts: dict[int | None, queue.SimpleQueue[bool | None]] = {}
        """None: there will be none."""
        self._stopping: set[int | None] = set()
        self._dropped: set[int | None] = set()
        self._news = threading.Event()
        self._spoke = time.monotonic()
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, event: str, *, lane: int | None = None, **content: Any) -> None:
        """Send ``event``."""
        self._spoke = time.monotonic()
        which = {} if lane is None else {"lane": lane}
        self._out.write(json.dumps({"event": event, **which, **content}) + "\n")
        self._out.flush()

    def ask(self, event: str, *, lane: int | None = None, **content: Any) -> bool:
        """Send ``event`` and wait for the runner's verdict on it."""
        self.send(event, lane=lane, **content)
        return self.awaited(lane)

    def awaited(self, lane: int | None) -> bool:
        """Return the runner's verdict on what ``lane`` has reported, when it is there.

        Raises:
            DroppedError: there will be none.
        """
        # A `verdict` before this may have met that there will be none.
        go_on = None if self.is_dropped(lane) else self._verdicts_on(lane).get()
        if go_on is None:
            raise DroppedError
        return go_on

    def verdict(self, lane: int | None) -> bool | None:
        """Return the runner's verdict on what ``lane`` has reported; None while it is not there."""
        try:
            return self._verdicts_on(lane).get_nowait()
        except queue.Empty:
            return None

    def should_stop(self, lane: int | None = None) -> bool:
        """Tell whether the runner wants the trial to be saved and left.

        Asked before each step, it is where the trial shows that it has not stalled.
        """
        if time.monotonic() - self._spoke > PULSE_SECONDS:
            self.send("pulse")
        return lane in self._stopping

    def is_dropped(self, lane: int | None) -> bool:
        """Tell whether another runner has the trial now."""
        return lane in self._dropped

    def next_command(self) -> Message:
        """Wait for the next command."""
        return self.commands.get()

    def wait(self) -> None:
        """Wait until the runner says something, or it is time for a pulse."""
        self._news.wait(PULSE_SECONDS)
        self._news.clear()

    def wake(self) -> None:
        """End a `wait`, from another thread."""
        self._news.set()

    def _verdicts_on(self, lane: int | None) -> queue.SimpleQueue[bool | None]:
        # In one step, since both threads ask.
        return self._verdicts.setdefault(lane, queue.SimpleQueue())

    def _listen(self) -> None:
        for line in sys.stdin:
            self._take(json.loads(line))
            self._news.set()
        # The runner is gone. What the trial has not saved is lost, and found again from its last
        # checkpoint; to wait for the loop could write beside the next runner's worker.
        os._exit(0)

    def _take(self, message: Message) -> None:
        lane = message.get("lane")
        if message["do"] == "verdict":
            self._verdicts_on(lane).put(message["go_on"])
        elif message["do"] == "stop":
            self._stopping.add(lane)
        elif message["do"] == "drop":
            self._dropped.add(lane)
            self._verdicts_on(lane).put(None)
        elif message["do"] == "quit":
            os._exit(0)  # nothing is in flight: the runner says so only to the idle
        else:
            # A stop that came before was for an earlier command; one that comes while this
            # process still warms up is for this one.
            self._stopping.discard(lane)
            self._verdicts.pop(lane, None)  # on what a trial reported before it failed
            self.commands.put(message)
