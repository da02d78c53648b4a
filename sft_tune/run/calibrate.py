"""How many trials at once train the most samples a second on this machine's CPU: measured.

Two trials of one thread each can do a fifth more than one trial of two threads, or nothing more,
depending on the model; a rule of thumb would be wrong for half of the users.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import psutil
from filelock import FileLock

from sft_tune.errors import SftTuneError
from sft_tune.run import messages
from sft_tune.run.engine import GONE, Engine, Inbox, Worker
from sft_tune.run.retention import prepared_place
from sft_tune.run.slots import Slot, available_cores, find_gpus
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.store.records import StudyRecord

SECONDS = 1.0
WORTH = 1.05
"""Twice as many at once must do so many times the samples; the search knows less when it asks."""

FEW = 8
"""Up to so many at once are tried although half as many gained nothing: it costs two seconds."""

OF_A_STEP = (
    *("batch_size", "batch_tokens", "micro_batch", "precision", "optimizer", "averaging", "r_drop"),
    *("freeze", "freeze_blocks", "gradient_checkpointing", "augment", "auto_augment", "mix"),
    *("color_jitter", "erasing", "token_masking"),
)
"""Settings of training that decide what a step takes."""

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
    resources: ResourcesSpec,
    engine: Engine,
    inbox: Inbox,
    idle: list[Worker],
) -> int:
    """Return how many trials to run at once on the CPU; what was once measured is remembered.

    Args:
        record: the study.
        config: its default configuration, with this machine's paths.
        resources: what is given of this machine; `is_open` of them holds.
        engine: makes the workers that are needed for it.
        inbox: where they answer.
        idle: the workers there are; those that were made are added. None is left where one of
            them failed.
    """
    features = record.spec.resources.feature_cache
    note, key = _note(), _key(config, resources, features=features)
    with _alone(note):
        known = known_cpu_workers(config, resources, features=features)
        if known is not None:
            return known
        try:
            best = _search(config, record, resources, engine, inbox, idle)
        except CannotMeasureError:
            for worker in idle:  # some wait for others, which will not come
                worker.close()
            idle.clear()
            return 1
        _remember(note, key, best)
    return best


def known_cpu_workers(
    config: TrialConfig, resources: ResourcesSpec, *, features: bool
) -> int | None:
    """Return what `best_cpu_workers` has measured before; None: nothing.

    ``features`` tells whether they may be kept.
    """
    known = _read(_note()).get(_key(config, resources, features=features))
    return known if isinstance(known, int) and 1 <= known <= available_cores() else None


def _note() -> Path:
    return messages.cache_folder() / "cpu_workers.json"


@contextlib.contextmanager
def _alone(note: Path) -> Iterator[None]:
    """Inside, no other process measures: each would have a part of the machine."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # a folder that takes no files: then nobody waits
            note.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(note.with_suffix(".lock"), poll_interval=0.1))
        yield


def _search(
    config: TrialConfig,
    record: StudyRecord,
    resources: ResourcesSpec,
    engine: Engine,
    inbox: Inbox,
    idle: list[Worker],
) -> int:
    best, best_rate, missed = 0, 0.0, False
    for count in _candidates(resources):
        if best and not _fits(count, resources):
            break
        threads = resources.threads_per_trial or available_cores() // count
        while len(idle) < count:
            idle.append(engine.spawn(Slot(len(idle), None, threads), inbox))
        rate = _rate(idle[:count], inbox, config, threads, record)
        if rate >= best_rate * (WORTH**2 if missed else WORTH):
            best, best_rate, missed = count, rate, False
        elif missed or 2 * count > FEW:
            break
        else:
            missed = True
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
    workers: list[Worker], inbox: Inbox, config: TrialConfig, threads: int, record: StudyRecord
) -> float:
    """Return the samples per second of ``workers`` together."""
    resources, prepared = record.spec.resources, prepared_place(record.artifacts)
    for worker in workers:
        device = worker.slot.device
        worker.send(messages.measure(config, device, threads, SECONDS, resources, prepared))
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


def _key(config: TrialConfig, resources: ResourcesSpec, *, features: bool) -> str:
    """Return what a measurement is valid for; ``features`` tells whether they may be kept."""
    model, data = config.model, config.data
    facts = [
        *(platform.node(), available_cores(), resources.threads_per_trial),
        *(resources.memory_per_trial, importlib.metadata.version("torch"), features),
        *(model.name, model.lora_rank, data.source, data.image_size, data.max_length),
        data.max_seconds,
        *(getattr(config.training, name) for name in OF_A_STEP),
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
