"""How many trials at once train the most samples a second on this machine's CPU: measured.

Two trials of one thread each can do a fifth more than one trial of two threads, or nothing more,
depending on the model; a rule of thumb would be wrong for half of the users.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from pathlib import Path

import psutil

from sft_tune.errors import SftTuneError
from sft_tune.run import messages
from sft_tune.run.engine import GONE, Engine, Inbox, Worker
from sft_tune.run.retention import prepared_place
from sft_tune.run.slots import Slot, available_cores, find_gpus
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.store.records import StudyRecord

SECONDS = 1.5
WORTH = 1.05
"""More trials at once must do so many times the samples; the search knows less when it asks."""

MEMORY_SHARE = 0.7


class CannotMeasureError(SftTuneError):
    """A worker died or failed while it measured."""


def is_open(resources: ResourcesSpec) -> bool:
    """Tell whether ``resources`` leaves it to a measurement how many trials run at once."""
    return (
        resources.engine == "local"
        and resources.trials_per_device is None
        and not find_gpus(resources)
        and available_cores() // (resources.threads_per_trial or 1) > 1
    )


def best_cpu_workers(
    record: StudyRecord,
    config: TrialConfig,
    engine: Engine,
    inbox: Inbox,
    idle: list[Worker],
) -> int:
    """Return how many trials to run at once on the CPU; what was once measured is remembered.

    Args:
        record: the study; `is_open` of its resources holds.
        config: its default configuration, with this machine's paths.
        engine: makes the workers that are needed for it.
        inbox: where they answer.
        idle: the workers there are; those that were made are added.
    """
    note = messages.cache_folder() / "cpu_workers.json"
    resources = record.spec.resources
    key = _key(config, resources)
    known = _read(note).get(key)
    if isinstance(known, int) and 1 <= known <= available_cores():
        return known
    try:
        best = _search(config, record, engine, inbox, idle)
    except CannotMeasureError:
        return 1
    _remember(note, key, best)
    return best


def _search(
    config: TrialConfig,
    record: StudyRecord,
    engine: Engine,
    inbox: Inbox,
    idle: list[Worker],
) -> int:
    resources, prepared = record.spec.resources, prepared_place(record.artifacts)
    best, best_rate = 0, 0.0
    for count in _candidates(resources):
        if best and not _fits(count, resources):
            break
        threads = resources.threads_per_trial or available_cores() // count
        while len(idle) < count:
            idle.append(engine.spawn(Slot(len(idle), None, threads), inbox))
        rate = _rate(idle[:count], inbox, config, threads, prepared)
        if rate < best_rate * WORTH:
            break
        best, best_rate = count, rate
    return best


def _candidates(resources: ResourcesSpec) -> list[int]:
    """Return the counts to try: 1, 2, 4, ... and as many as there are cores for."""
    most = available_cores() // (resources.threads_per_trial or 1)
    counts = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return counts if counts[-1] == most else [*counts, most]


def _fits(count: int, resources: ResourcesSpec) -> bool:
    """Tell whether ``count`` workers fit into memory, by what the present ones take."""
    each = resources.memory_per_trial
    if each is not None:
        return each * count * 2**30 <= psutil.virtual_memory().total
    children = psutil.Process().children(recursive=True)
    taken = max((child.memory_info().rss for child in children if child.is_running()), default=0)
    return taken * count <= MEMORY_SHARE * psutil.virtual_memory().total


def _rate(
    workers: list[Worker], inbox: Inbox, config: TrialConfig, threads: int, prepared: str | None
) -> float:
    """Return the samples per second of ``workers`` together."""
    for worker in workers:
        device = worker.slot.device
        worker.send(messages.measure(config, device, threads, SECONDS, prepared))
    _collect(workers, inbox, "armed")
    for worker in workers:
        worker.send(messages.verdict(True))
    return sum(_collect(workers, inbox, "measured"))


def _collect(workers: list[Worker], inbox: Inbox, event: str) -> list[float]:
    """Wait for ``event`` of each of ``workers``; return what they measured."""
    missing = set(workers)
    rates = []
    while missing:
        worker, message = inbox.get()
        if worker is None:  # a signal's; the dispatcher will see that it is to stop
            raise CannotMeasureError("interrupted")
        if message["event"] == event:
            missing.discard(worker)
            rates.append(float(message.get("rate", 0.0)))
        elif message["event"] in (GONE, "error"):
            raise CannotMeasureError(message.get("message") or message["how"])
    return rates


def _key(config: TrialConfig, resources: ResourcesSpec) -> str:
    """Return what a measurement is valid for."""
    training, data = config.training, config.data
    facts = [
        *(platform.node(), available_cores(), resources.threads_per_trial),
        *(resources.memory_per_trial, config.model.name, training.batch_size, training.freeze),
        *(training.precision, data.source, data.image_size, data.max_length),
        *(data.max_seconds, training.batch_tokens),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _read(note: Path) -> dict[str, object]:
    try:
        content = json.loads(note.read_text("utf8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(note: Path, key: str, count: int) -> None:
    """Write it down; a note that cannot be written costs a measurement the next time."""
    temporary = note.with_name(f"{note.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**_read(note), key: count}), encoding="utf8")
        temporary.replace(note)
