"""Ctrl-C and SIGTERM: the first stops in order, the second at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

EXIT_CODE = 130
HINT = "stopping: the trial is saved first; Ctrl-C again ends at once, at its last checkpoint"
TERMINATED = "stopping: trials are saved and handed back, within resources.grace_seconds"


def say_at_once(text: str) -> None:
    """Write ``text`` to standard error past all buffers, one of which a signal may have met."""
    os.write(2, f"{text}\n".encode())


class Stopping:
    """While entered, signals call what was attached; before anything is, KeyboardInterrupt.

    Handlers run between any two steps of the main thread: what is attached must be made for it.
    """

    def __init__(self) -> None:
        """Attach nothing yet."""
        self.count = 0
        self._stop: Callable[[], None] | None = None
        self._abort: Callable[[], None] | None = None
        self._terminate: Callable[[], None] | None = None
        self.exit_code: int | None = None
        """By the signal that came: 130 for Ctrl-C, 143 for SIGTERM; None while none has."""
        self._say: Callable[[str], None] = lambda text: None
        self._before: dict[signal.Signals, Any] = {}

    def attach(
        self,
        stop: Callable[[], None],
        abort: Callable[[], None],
        say: Callable[[str], None],
        terminate: Callable[[], None] | None = None,
    ) -> None:
        """Let the first signal call ``stop`` and ``say`` a hint, and each further one ``abort``.

        SIGTERM, which a scheduler sends before it kills, calls ``terminate`` where it is given.
        """
        self._terminate = terminate
        self._abort, self._say = abort, say
        self._stop = stop

    def detach(self) -> None:
        """Let a signal raise KeyboardInterrupt again: what was attached is over."""
        self._stop = self._abort = self._terminate = None

    def __enter__(self) -> Self:
        for name in (signal.SIGINT, signal.SIGTERM):
            self._before[name] = signal.signal(name, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self.exit_code = 128 + number
        if self._stop is None or self._abort is None:
            raise KeyboardInterrupt
        if self.count > 1:
            self._abort()
            return
        self._say(TERMINATED if number == signal.SIGTERM else HINT)
        if number == signal.SIGTERM and self._terminate is not None:
            self._terminate()
        else:
            self._stop()
