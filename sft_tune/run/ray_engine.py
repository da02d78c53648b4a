"""Workers as actors of a Ray cluster: where they run, and what is lost, is Ray's affair.

An actor holds the CPUs and the share of a GPU that its slot asks for, and runs the same worker
process as the local engine does, as its child: CUDA_VISIBLE_DEVICES is set before anything is
imported, and a worker that dies leaves its last words. An actor or node that Ray loses is a
worker that died.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from sft_tune.errors import UserError
from sft_tune.run.engine import GONE, Inbox, LocalEngine
from sft_tune.run.messages import Message
from sft_tune.run.slots import GIB, Slot
from sft_tune.spec.resources import ResourcesSpec

CONNECT_SECONDS = 10


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError(
            "resources.engine: ray needs the package ray; pip install 'sft_tune[ray]', "
            "or use `engine: local`"
        ) from None
    return ray


def _knock(address: str) -> None:
    """Raise OSError when nobody listens at ``address`` (host:port); other forms are Ray's."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


class Seat:
    """The actor: a worker process beside it, and its messages."""

    def __init__(self, slot: Slot) -> None:
        """Start the worker process on what Ray gave this actor."""
        import queue

        gpus = _ray().get_gpu_ids()
        placed = Slot(
            slot.index, str(gpus[0]) if gpus else None, slot.threads, slot.share, slot.sharing
        )
        self._inbox: Inbox = queue.SimpleQueue()
        self._logs = tempfile.TemporaryDirectory(prefix="sft_tune_worker")
        self._worker = LocalEngine(Path(self._logs.name)).spawn(placed, self._inbox)

    def next(self) -> Message:
        """Wait for the next message of the worker."""
        return self._inbox.get()[1]

    def send(self, message: Message) -> None:
        """Send the worker a command."""
        self._worker.send(message)

    def close(self, patience: float) -> None:
        """End the worker."""
        self._worker.close(patience)

    def pid(self) -> int:
        """Return the process number of the worker."""
        return self._worker.pid


class RayEngine:
    """Workers as actors of a Ray cluster."""

    name = "ray"

    def __init__(self, resources: ResourcesSpec, address: str | None = None) -> None:
        """Join the cluster at ``address``, or that of RAY_ADDRESS; without one start a local one.

        Raises:
            UserError: Ray is not installed, or no cluster answers.
        """
        self._ray = _ray()
        self._resources = resources
        self._ours = not self._ray.is_initialized()
        if self._ours:
            self._join(address)

    def _join(self, address: str | None) -> None:
        try:
            if address is not None:
                _knock(address)  # Ray itself would wait for minutes
            self._ray.init(
                address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
            )
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            said = str(error).strip().splitlines()[0]
            raise UserError(
                f"--ray-address: a Ray cluster must answer (got {address}: {said}); start one "
                "with `ray start --head`, or leave the option out for a local one"
            ) from error

    def find_slots(self) -> list[Slot]:
        """Return as many slots as the cluster has room for now, or as `resources.workers` says.

        More than it has room for wait, and let an autoscaling cluster grow.
        """
        resources, has = self._resources, self._ray.cluster_resources()
        gpus = 0 if resources.devices == "cpu" else int(has.get("GPU", 0))
        if isinstance(resources.devices, tuple):
            raise UserError(
                "resources.devices: auto or cpu with `engine: ray` (got "
                f"{list(resources.devices)}); Ray chooses the GPUs"
            )
        sharing = resources.trials_per_device or 1
        cores = max(1, int(has.get("CPU", 1)))
        if gpus:
            count = resources.workers or gpus * sharing
            threads = resources.threads_per_trial or max(1, cores // max(count, 1))
            return [Slot(i, "any", threads, i % sharing, sharing) for i in range(count)]
        threads = resources.threads_per_trial or 1
        count = resources.workers or resources.trials_per_device or max(1, cores // threads)
        return [Slot(i, None, threads, i + 1 if count > 1 else 0, count) for i in range(count)]

    def spawn(self, slot: Slot, inbox: Inbox) -> RayWorker:
        """Ask Ray for an actor with the resources of ``slot``."""
        each = self._resources.memory_per_trial
        options: dict[str, Any] = {
            "num_cpus": slot.threads,
            "max_restarts": 0,
            "concurrency_groups": {"listen": 1, "speak": 1},
        }
        if slot.gpu is not None:
            options["num_gpus"] = 1 / slot.sharing
        elif each is not None:
            options["memory"] = int(each * GIB)
        actor = self._ray.remote(**options)(_with_groups(self._ray)).remote(slot)
        return RayWorker(self._ray, actor, slot, inbox)

    def close(self) -> None:
        """Leave the cluster, if it was joined here."""
        if self._ours:
            self._ray.shutdown()


def _with_groups(ray: Any) -> type:
    """Return `Seat` with commands in one thread and events in another: each stays in its order."""

    class Actor(Seat):
        next = ray.method(concurrency_group="listen")(Seat.next)
        send = ray.method(concurrency_group="speak")(Seat.send)
        close = ray.method(concurrency_group="speak")(Seat.close)
        pid = ray.method(concurrency_group="speak")(Seat.pid)

    Actor.__name__ = Actor.__qualname__ = "SftTuneWorker"
    return Actor


class RayWorker:
    """A worker that is the child of a Ray actor."""

    def __init__(self, ray: Any, actor: Any, slot: Slot, inbox: Inbox) -> None:
        """Listen to ``actor``; its events arrive in ``inbox``."""
        self.slot = slot
        self._ray = ray
        self._actor = actor
        self._gone = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(inbox,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process number of the worker, on the machine where Ray has put it."""
        return int(self._ray.get(self._actor.pid.remote()))

    def send(self, message: Message) -> None:
        """Send a command."""
        if not self._gone.is_set():
            self._actor.send.remote(message)

    def close(self, patience: float = 10.0) -> None:
        """End it in order."""
        if not self._gone.is_set():
            with contextlib.suppress(Exception):  # it is on its way out, in whatever state
                self._ray.get(self._actor.close.remote(patience), timeout=patience)
        self.kill()
        self._reader.join(patience)

    def kill(self) -> None:
        """End the actor at once; its child goes when its input ends."""
        self._ray.kill(self._actor)

    def drop(self) -> None:
        """End it at once: there is nothing else that it does."""
        self.kill()

    def _read(self, inbox: Inbox) -> None:
        how, said = "was lost with its Ray actor", ""
        try:
            while True:
                message = self._ray.get(self._actor.next.remote())
                if message["event"] == GONE:
                    how, said = message["how"], message["said"]
                    break
                inbox.put((self, message))
        except Exception as error:  # Ray's many errors for an actor, a node, a cluster that is gone
            said = str(error).strip().splitlines()[0] if str(error).strip() else ""
        self._gone.set()
        inbox.put((self, {"event": GONE, "how": how, "said": said}))
