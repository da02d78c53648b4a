"""Where worker processes come from: forked from a warm process, or started where that cannot be.

A worker imports torch and its kin, which takes seconds; a fork of a process that has imported
them takes milliseconds and shares their memory. So this process keeps a fork server (see
`fork_server`) for each environment that its workers have been asked for with.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

CAN_FORK = sys.platform == "linux"
"""Elsewhere there is no fork, or system libraries that do not bear one without an exec."""

# What nothing that the server imports reads: a child gets its own before it is used.
READ_LATER = (
    *("SFT_TUNE_", "PYTEST_", "RAY_", "CUDA_VISIBLE_DEVICES"),
    *("PWD", "OLDPWD", "COLUMNS", "LINES"),
)
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Arrow's allocator else starts a thread when it is loaded.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
GOODBYE_SECONDS = 5.0
MOST_SERVERS = 2
"""Of more, those that have no children go: each holds the memory of what it has imported."""


SIZE = struct.Struct("!I")
"""What stands before a request: its bytes. To read on to an end would take what comes after it, and
lose the descriptors that come with that."""


def framed(request: Mapping[str, Any]) -> bytes:
    """Return ``request`` as the server reads it."""
    content = json.dumps(request).encode()
    return SIZE.pack(len(content)) + content


class Process(Protocol):
    """A worker process, as `subprocess.Popen` has it."""

    pid: int

    def wait(self) -> int | None:
        """Wait until it has ended; return its exit status, minus the signal that killed it."""

    def kill(self) -> None:
        """Kill it, if it lives."""


class Child:
    """A worker that a fork server has forked."""

    def __init__(self, pid: int) -> None:
        """Stand for the process ``pid``."""
        self.pid = pid
        self._over = threading.Event()
        self._code: int | None = None

    def wait(self) -> int | None:
        """Wait until it has ended, or its server: then nobody can tell how it ends (None)."""
        self._over.wait()
        return self._code

    def kill(self) -> None:
        """Kill it, unless it is known to have ended."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def ended(self, code: int | None) -> None:
        """Take note that it ended with ``code``; None: that nobody will know."""
        self._code = code
        self._over.set()


class Nursery:
    """A fork server, from this side."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it with ``environment``; requests wait until it has imported everything."""
        self._socket, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sft_tune.run.fork_server", str(number)],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**environment, **ONE_THREAD},
                start_new_session=True,
            )
        self.closed = False
        self._children: dict[int, Child] = {}
        self._answers: queue.SimpleQueue[Child | None] = queue.SimpleQueue()
        self._asking = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def bear(
        self, environment: Mapping[str, str], descriptors: tuple[int, int, int]
    ) -> Child | None:
        """Fork a worker on ``descriptors``; None: the server has ended, or cannot fork."""
        request = {"environment": dict(environment), "folder": os.getcwd()}
        with self._asking:
            try:
                socket.send_fds(self._socket, [b"+"], descriptors)
                self._socket.sendall(framed(request))
            except OSError:
                return None
            return self._answers.get()

    def preload(self, modules: Iterable[str]) -> None:
        """Let it import ``modules``, where they can be, before it forks any more."""
        with self._asking, contextlib.suppress(OSError):
            self._socket.sendall(b"+" + framed({"import": list(modules)}))

    @property
    def childless(self) -> bool:
        """Whether none of its workers lives."""
        return not self._children

    def close(self) -> None:
        """Let it end; its children live on, each as long as its own input."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(GOODBYE_SECONDS)
        if self._reader.is_alive():
            self.process.kill()
            self._reader.join(GOODBYE_SECONDS)

    def forget(self) -> None:
        """Let go of it without a word: it is the parent's of this forked process."""
        os.close(self._socket.detach())  # `close` would wait for the thread that reads
        self.process.returncode = 0

    def _read(self) -> None:
        with self._socket.makefile("rb") as answers, contextlib.suppress(OSError):
            for line in answers:
                answer = json.loads(line)
                if "born" in answer:
                    child = self._children[answer["born"]] = Child(answer["born"])
                    self._answers.put(child)
                elif "ended" in answer:
                    self._children.pop(answer["ended"]).ended(answer["code"])
                else:
                    self._answers.put(None)
        self.closed = True
        self._answers.put(None)
        for child in self._children.values():
            child.ended(None)
        self._socket.close()
        self.process.wait()


_Key = frozenset[tuple[str, str]]
_nurseries: dict[_Key, Nursery] = {}
_preloaded: dict[_Key, dict[str, None]] = {}
"""Modules that the servers of an environment import: one that follows a dead one must, too."""
_looking = threading.Lock()


def start_worker(environment: Mapping[str, str], descriptors: tuple[int, int, int]) -> Process:
    """Start a worker process whose input, output and errors are ``descriptors``.

    Args:
        environment: the whole of it, with OMP_NUM_THREADS.
        descriptors: stay open here; they are the caller's to close.

    Raises:
        OSError: no process can be started.
    """
    for _ in range(2 if CAN_FORK else 0):  # one that is there may end while it is asked
        child = _nursery(environment).bear(environment, descriptors)
        if child is not None:
            return child
    reads, writes, errors = descriptors
    return subprocess.Popen(
        [sys.executable, "-m", "sft_tune.run.worker"],
        stdin=reads,
        stdout=writes,
        stderr=errors,
        env=environment,
        # Ctrl-C at the terminal is for the runner, which stops its workers in order.
        start_new_session=True,
    )


def prepare(environment: Mapping[str, str], modules: Iterable[str] = ()) -> None:
    """Let a fork server begin to import, ``modules`` too, for workers that are started later."""
    if CAN_FORK:
        with contextlib.suppress(OSError):  # told of when a worker is needed
            server = _nursery(environment)
            _preloaded.setdefault(_key(environment), {}).update(dict.fromkeys(modules))
            server.preload(modules)


def _key(environment: Mapping[str, str]) -> _Key:
    """Return what workers must agree on to be forked from one server."""
    early = {k: v for k, v in environment.items() if not k.startswith(READ_LATER)} | ONE_THREAD
    return frozenset(early.items())


def _nursery(environment: Mapping[str, str]) -> Nursery:
    """Return the fork server for ``environment``: one that has imported under an equal one."""
    key = _key(environment)
    with _looking:
        for known, one in list(_nurseries.items()):
            if one.closed:
                del _nurseries[known]
        if key in _nurseries:
            server = _nurseries.pop(key)
        else:
            server = Nursery(environment)
            if key in _preloaded:
                server.preload(_preloaded[key])
        _nurseries[key] = server  # the last used one stands last
        childless = [k for k, one in _nurseries.items() if one.childless and k != key]
        for other in childless[: max(0, len(_nurseries) - MOST_SERVERS)]:
            _nurseries.pop(other).close()
        return server


@atexit.register
def _close_all() -> None:
    for nursery in list(_nurseries.values()):  # a thread may be starting a worker still
        nursery.close()


def _forget_all() -> None:
    """Leave the servers to the parent of this forked process: they must end with it alone."""
    for nursery in _nurseries.values():
        nursery.forget()
    _nurseries.clear()


if CAN_FORK:
    os.register_at_fork(after_in_child=_forget_all)
