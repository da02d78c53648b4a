"""What places workers on slots: a protocol, and the engine of local processes.

A worker is a process of its own that is spoken to in lines of JSON: commands on its standard
input, events on its standard output. It dies when its input ends, so a killed runner leaves no
worker behind.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
from pathlib import Path
from typing import Protocol

from sft_tune.run.messages import Message
from sft_tune.run.nursery import Process, start_worker
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
    """A worker that is a process of this machine."""

    def __init__(self, slot: Slot, inbox: Inbox, log: Path) -> None:
        """Have it started; its standard error is appended to ``log``."""
        self.slot = slot
        self._log = log
        self._process: Process | None = None
        self._begun = threading.Event()
        reads, commands = os.pipe()
        events, writes = os.pipe()
        errors = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._log_start = os.fstat(errors).st_size
        self._input = os.fdopen(commands, "wb")
        self._events = os.fdopen(events, "rb")
        self._sending = threading.Lock()
        # In the thread, since the first one waits for a server that has to import, for seconds.
        start = functools.partial(self._run, inbox, worker_environment(slot))
        arguments = ((reads, writes, errors),)
        self._reader = threading.Thread(target=start, args=arguments, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process number; waits until it has one.

        Raises:
            ProcessLookupError: it could not be started.
        """
        self._begun.wait()
        if self._process is None:
            raise ProcessLookupError("the worker could not be started")
        return self._process.pid

    def send(self, message: Message) -> None:
        """Send a command."""
        line = json.dumps(message).encode() + b"\n"
        with self._sending, contextlib.suppress(BrokenPipeError, ValueError):
            self._input.write(line)
            self._input.flush()

    def close(self, patience: float = 10.0) -> None:
        """End it: its input ends, which it takes as the word to go."""
        self._close_input()
        self._reader.join(patience)
        if self._reader.is_alive():
            self.kill()
            self._reader.join(patience)

    def kill(self) -> None:
        """End it at once; one that is not there yet will find that its input has ended."""
        process = self._process
        if process is not None and self._reader.is_alive():
            process.kill()
            process.wait()
        self._close_input()

    def drop(self) -> None:
        """End it at once: there is nothing else that it does."""
        self.kill()

    def _close_input(self) -> None:
        with self._sending, contextlib.suppress(BrokenPipeError):
            self._input.close()

    def _run(
        self, inbox: Inbox, environment: dict[str, str], descriptors: tuple[int, int, int]
    ) -> None:
        """Start the process, hand on what it says, and tell how it ended."""
        try:
            self._process = start_worker(environment, descriptors)
            how = ""
        except OSError as error:
            how = f"could not be started: {error}"
        finally:
            self._begun.set()
            for descriptor in descriptors:
                os.close(descriptor)
        with self._events:
            for line in self._events:
                inbox.put((self, json.loads(line)))
        if self._process is not None:
            how = _how(self._process.wait())
        self._close_input()
        inbox.put((self, {"event": GONE, "how": how, "said": self._last_words()}))

    def _last_words(self, lines: int = 15) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return b"\n".join(log.read().splitlines()[-lines:]).decode(errors="replace")


def _how(code: int | None) -> str:
    """Say in words how a process with exit status ``code`` ended."""
    if code is None:
        return "is gone, and so is the process that it was forked from"
    if code >= 0:
        return f"exited with status {code}"
    name = signal.Signals(-code).name
    hint = " (the kernel kills so when memory runs out)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
