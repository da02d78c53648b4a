"""What places workers on slots: a protocol, and the engine of local processes.

A worker is a process of its own that is spoken to in lines of JSON: commands on its standard
input, events on its standard output. It dies when its input ends, so a killed runner leaves no
worker behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Protocol

from sft_tune.run.messages import Message
from sft_tune.run.slots import Slot, worker_environment

GONE = "gone"


class Inbox(Protocol):
    """Where events arrive, each with its worker; with None what a signal handler puts there."""

    def put(self, item: tuple[Worker | None, Message]) -> None:
        """Add an event; a signal handler may do so (a `queue.SimpleQueue` admits it)."""

    def get(self, *, timeout: float | None = None) -> tuple[Worker | None, Message]:
        """Wait for the next event.

        Raises:
            queue.Empty: there was none for ``timeout`` seconds.
        """


class Worker(Protocol):
    """One worker process on one slot."""

    slot: Slot
    """Where it runs; it can be given another one of the same device."""

    def send(self, message: Message) -> None:
        """Send a command; a worker that is gone ignores it (its `gone` event is on its way)."""

    def close(self, patience: float = 10.0) -> None:
        """End it: let it go by itself for ``patience`` seconds, then kill it."""

    def kill(self) -> None:
        """End it at once."""

    def drop(self) -> None:
        """Have it let go of its trial at once, unsaved; it serves no other."""


class Engine(Protocol):
    """What places workers on slots."""

    name: str

    def spawn(self, slot: Slot, inbox: Inbox) -> Worker:
        """Start a worker on ``slot``; its events, a last `gone` included, arrive in ``inbox``."""

    def close(self) -> None:
        """Let go of what places the workers, when all of them have ended."""


class LocalEngine:
    """Workers as child processes of this machine."""

    name = "local"

    def __init__(self, logs: Path) -> None:
        """Keep what workers print outside of trials in the folder ``logs``."""
        self._logs = logs

    def spawn(self, slot: Slot, inbox: Inbox) -> LocalWorker:
        """Start a worker process on ``slot``."""
        self._logs.mkdir(parents=True, exist_ok=True)
        return LocalWorker(slot, inbox, self._logs / f"worker-{os.getpid()}-{slot.index}.log")

    def close(self) -> None:
        """Processes need nothing but themselves."""


class LocalWorker:
    """A worker that is a child process."""

    def __init__(self, slot: Slot, inbox: Inbox, log: Path) -> None:
        """Start it; its standard error is appended to ``log``."""
        self.slot = slot
        self._log = log
        with log.open("ab") as errors:
            self._log_start = errors.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sft_tune.run.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=worker_environment(slot),
                # Ctrl-C at the terminal is for the runner, which stops its workers in order.
                start_new_session=True,
            )
        self._sending = threading.Lock()
        self._reader = threading.Thread(target=self._read, args=(inbox,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Send a command."""
        line = json.dumps(message).encode() + b"\n"
        pipe = self._process.stdin
        with self._sending, contextlib.suppress(BrokenPipeError, ValueError):
            if pipe is not None:
                pipe.write(line)
                pipe.flush()

    def close(self, patience: float = 10.0) -> None:
        """End it: its input ends, which it takes as the word to go."""
        self._close_input()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self.kill()
        self._reader.join(patience)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        self._close_input()

    def drop(self) -> None:
        """End it at once: there is nothing else that it does."""
        self.kill()

    def _close_input(self) -> None:
        pipe = self._process.stdin
        with self._sending, contextlib.suppress(BrokenPipeError):
            if pipe is not None:
                pipe.close()

    def _read(self, inbox: Inbox) -> None:
        pipe = self._process.stdout
        if pipe is not None:
            with pipe:
                for line in pipe:
                    inbox.put((self, json.loads(line)))
        code = self._process.wait()
        self._close_input()
        inbox.put((self, {"event": GONE, "how": _how(code), "said": self._last_words()}))

    def _last_words(self, lines: int = 15) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return b"\n".join(log.read().splitlines()[-lines:]).decode(errors="replace")


def _how(code: int) -> str:
    """Say in words how a process with exit status ``code`` ended."""
    if code >= 0:
        return f"exited with status {code}"
    name = signal.Signals(-code).name
    hint = " (the kernel kills so when memory runs out)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
