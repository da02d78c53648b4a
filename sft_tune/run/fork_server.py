"""The fork server: `python -m sft_tune.run.fork_server FD`, started by `nursery`, not by people.

It imports what workers import (seconds), computes nothing, and forks a worker at each request
(milliseconds). It has one thread and no CUDA context, since a child could use neither: threads do
not survive a fork, and CUDA cannot be begun again. It ends with its runner, whose end of the
socket FD closes however the runner dies.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from sft_tune.run import worker
from sft_tune.run.nursery import SIZE

IDLE_SECONDS = 300.0
"""Without children for so long, it gives its memory back; the next request starts another."""


def main() -> None:
    """Serve requests until the runner goes, or there was nothing to do for a while."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    with _ending_with(connection):
        worker.warm_up()
    # What is there now is collected by no child, whose pages would cease to be shared by it.
    gc.freeze()
    Server(connection).serve()
    os._exit(0)


class Server:
    """Forks workers, and tells how they ended."""

    def __init__(self, connection: socket.socket) -> None:
        """Serve the runner at the other end of ``connection``."""
        self._connection = connection
        self._home = os.getcwd()
        self._children: set[int] = set()
        # A child's end interrupts no system call, it makes this pipe readable.
        self._ended, ended = os.pipe()
        os.set_blocking(self._ended, False)
        os.set_blocking(ended, False)
        self._own = (connection.fileno(), self._ended, ended)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(ended, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Fork and reap until the connection ends."""
        while True:
            patience = None if self._children else IDLE_SECONDS
            asked = self._connection.fileno()
            ready, _, _ = select.select([asked, self._ended], [], [], patience)
            if not ready:
                return
            if self._ended in ready:
                os.read(self._ended, 4096)
                self._reap()
            if asked in ready and not self._bear():
                return

    def _bear(self) -> bool:
        """Fork the worker that is asked for; return False where the runner has gone."""
        mark, descriptors, _, _ = socket.recv_fds(self._connection, 1, 3)
        if not mark or not (size := self._read(SIZE.size)):
            return False
        request = self._read(SIZE.unpack(size)[0])
        if not request:
            return False
        wanted = json.loads(request)
        if "import" in wanted:
            with _ending_with(self._connection):
                _preload(wanted["import"])
            return True
        try:
            pid = os.fork()
        except OSError as error:
            self._tell({"refused": str(error)})
        else:
            if pid == 0:
                self._become_worker(wanted, descriptors)
            self._children.add(pid)
            self._tell({"born": pid})
        # Kept open here, a sibling's pipe would never end.
        for descriptor in descriptors:
            os.close(descriptor)
        return True

    def _read(self, count: int) -> bytes:
        """Return so many bytes; none: the runner has gone."""
        found = b""
        while len(found) < count:
            part = self._connection.recv(count - len(found))
            if not part:
                return b""
            found += part
        return found

    def _become_worker(self, request: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Ctrl-C at the terminal is for the runner, which stops its workers in order.
            os.setsid()
            for target, descriptor in enumerate(descriptors):
                os.dup2(descriptor, target)
            for descriptor in (*descriptors, *self._own):
                os.close(descriptor)
            os.environ.clear()
            os.environ.update(request["environment"])
            os.chdir(request["folder"])
            if sys.path[0] == self._home:  # as `python -m` would have it there
                sys.path[0] = request["folder"]
            importlib.invalidate_caches()
            worker.keep_cuda_usable()
            worker.use_threads(int(os.environ["OMP_NUM_THREADS"]))
            worker.main()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(1)

    def _reap(self) -> None:
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._children.remove(pid)
                self._tell({"ended": pid, "code": os.waitstatus_to_exitcode(status)})

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")


def _preload(modules: Sequence[str]) -> None:
    for module in modules:
        # What is wrong with it, the worker will tell whose model needs it.
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    gc.freeze()


@contextlib.contextmanager
def _ending_with(connection: socket.socket) -> Iterator[None]:
    """End the process at once when the runner goes while the block runs."""
    over, end = os.pipe()

    def watch() -> None:
        poll = select.poll()
        poll.register(connection, 0)  # hang-up is always reported, requests are not asked for
        poll.register(over, select.POLLIN)
        if not any(descriptor == over for descriptor, _ in poll.poll()):
            os._exit(0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        os.write(end, b"x")
        watcher.join()
        os.close(over)
        os.close(end)


if __name__ == "__main__":
    main()
