"""How many times faster trials train as a stack than one after another: measured, in a moment.

What was found of stacks of models is remembered for the next study of the same model, data and
device: one small JSON file under `stacked` of the cache folder.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.stacking import trains_models
from sft_tune.trial.data import Prepared, prepare
from sft_tune.trial.data.cache import key_of
from sft_tune.trial.device import (
    is_out_of_memory,
    memory_of_its_own,
    open_device,
    peak_memory,
    resolve_precision,
    wait_for,
)
from sft_tune.trial.features import use_features
from sft_tune.trial.models import parameter_count
from sft_tune.trial.outcome import Evaluation
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.remembered import STEP, facts_of, replace_json
from sft_tune.trial.stack.shared import NotStackableError
from sft_tune.trial.stack.trials import Stack
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import Trainee, set_up

FOLDER = "stacked"
WARM_UP = 5
STEPS = 25

FEW = 3
"""Steps of models that are measured at a time, after one to warm up; up to `STEPS` within..."""
SECONDS = 0.5

LEAST_SECONDS = 60.0
"""Of training that the trials of a study take one after another, where models are measured."""

LARGE = 0.25
"""Seconds of a step whose kernels fill any device, and that a measurement should not wait for."""

COPIES = 10
"""What a trial takes at least, in copies of its weights: gradients, moments, the best ones, ..."""
SHARE = 0.8
"""Of the device's free memory that a stack may take."""


COMPARISON = 2
"""By which a stack on a GPU was refused: since 2, in full single precision."""


class Gain(NamedTuple):
    """What a stack gives.

    Attributes:
        ratio: of the times of a step of so many trials; 0 where they cannot be stacked.
        most: trials that the device's memory holds; None: of heads, which take little.
    """

    ratio: float
    most: int | None = None


def measure(
    config: TrialConfig,
    count: int,
    *,
    trials: int | None,
    device: str,
    cache: Path,
    batch_size: int,
) -> Gain:
    """Return what a stack of up to ``count`` trials like ``config`` gives.

    Args:
        config: of one of them.
        count: at once.
        trials: in all; None: no one knows.
        device: see `run_trial`, as of the next.
        cache: of prepared data, features and what is remembered.
        batch_size: of evaluation.

    Raises:
        DataError, ModelError: as `run_trial`.
    """
    where = open_device(device)
    data = prepare(config.task, config.data, config.model, cache=cache)
    steps = -(-len(data.train) // config.training.batch_size)
    in_all = math.inf if trials is None else trials * steps * config.training.epochs
    epochs = -(-2 * (WARM_UP + STEPS + 1) // steps)
    config = config.model_copy(
        update={
            "training": config.training.model_copy(update={"epochs": epochs}),
            "objective": config.objective.model_copy(update={"rungs": 1}),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        stack = _Tried(config, where, cache, batch_size, Path(folder))
        if trains_models(config):
            return _of_models(stack, data, count, in_all)
        return Gain(_of_heads(stack, data, count))


class _Tried:
    """A stack of trials of one configuration, with seeds of their own."""

    def __init__(
        self, config: TrialConfig, device: torch.device, cache: Path, batch_size: int, folder: Path
    ) -> None:
        self.config, self.device, self.cache = config, device, cache
        self.batch_size = batch_size
        self._folder = folder
        self.stack: Stack[int] = Stack(
            str(device), cache, checkpoint_seconds=60, evaluation_batch_size=batch_size
        )

    def fill(self, count: int) -> None:
        """Let trials enter until there are ``count``.

        Raises:
            NotStackableError: when they cannot.
        """
        for k in range(len(self.stack), count):
            seeded = self.config.model_copy(update={"seed": self.config.seed + k})
            self.stack.enter(k, seeded, TrialPaths(self._folder / str(k)), _ignore)

    def step(self, _: int) -> None:
        """Do one step of all."""
        self.stack.work()


def _of_heads(tried: _Tried, data: Prepared, count: int) -> float:
    try:
        tried.fill(count)
    except NotStackableError:
        return 0.0
    stacked = _seconds(tried.step, tried.device)
    trainee = set_up(tried.config, data, tried.device)
    use_features(trainee, tried.cache, tried.batch_size)
    trainee.set_training_mode()
    alone = _seconds(lambda step: train_step(trainee, step), tried.device)
    return count * alone / stacked


def _of_models(tried: _Tried, data: Prepared, count: int, steps: float) -> Gain:
    """Return what is remembered, or measured where all trials do so many ``steps``."""
    facts = _facts(tried.config, data, tried.device, count)
    path = tried.cache / FOLDER / f"{key_of(facts)}.json"
    known = _read(path)
    if known is None or (known["ratio"] is None and _may_repay(known["alone"], steps)):
        try:
            known = _tried_out(tried, data, count, steps)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return Gain(0.0)  # another time there may be more
        # What is hardly too large may have been slow for once: another time it is measured anew.
        if known["ratio"] is not None or not LARGE < known["alone"] < 2 * LARGE:
            _keep(path, known)
    if known["ratio"] is None:
        return Gain(0.0)
    return Gain(known["ratio"], _most(tried.device, known["bytes"]))


def _may_repay(alone: float, steps: float) -> bool:
    """Tell whether to measure a stack, given the seconds of a step and how many there are."""
    return alone * steps >= LEAST_SECONDS and alone <= LARGE


def _tried_out(tried: _Tried, data: Prepared, count: int, steps: float) -> dict[str, Any]:
    """Return the seconds of a step alone; and a stack's gain and bytes, where that may repay."""
    trainee = set_up(tried.config, data, tried.device)
    try:
        tried.fill(1)  # most that cannot be stacked are refused here, before anything is timed
        (alone,) = _fastest([lambda step: train_step(trainee, step)], tried.device)
        found = {"alone": alone, "ratio": None, "bytes": 0}
        return {**found, **(_found(tried, trainee, count) if _may_repay(alone, steps) else {})}
    except NotStackableError:
        return {"alone": 0.0, "ratio": 0.0, "bytes": 0}


def _found(tried: _Tried, trainee: Trainee, count: int) -> dict[str, Any]:
    """Return the bytes of a trial, and the ratio of as many as memory holds, up to ``count``."""
    device = tried.device

    def ratio() -> float:
        works = [lambda step: train_step(trainee, step), tried.step]
        alone, stacked = _fastest(works, device)
        return len(tried.stack) * alone / stacked

    with memory_of_its_own(device):
        before = _used(device)
        tried.fill(2)
        two = ratio()
        # The first was there before.
        taken = peak_memory(device) - before
    size = max(taken, 4 * COPIES * parameter_count(trainee.model.module, trained_only=True))
    found = {"ratio": two, "bytes": size}
    count = min(count, _most(device, size))
    # More do not make up for what two already lose.
    if count > 2 and found["ratio"] > 1:
        tried.fill(count)
        found["ratio"] = ratio()
    return found


def _most(device: torch.device, size: int) -> int:
    """Return of how many trials of ``size`` bytes the device has room."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    return int(SHARE * free / max(size, 1))


def _used(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def _facts(config: TrialConfig, data: Prepared, device: torch.device, count: int) -> dict[str, Any]:
    threads = torch.get_num_threads() if device.type == "cpu" else None
    dtype = resolve_precision(config.training.precision, device)
    about = {"count": count, "threads": threads, "torch": torch.__version__, "step": STEP}
    if device.type == "cuda":
        about["comparison"] = COMPARISON
    return {
        **facts_of(config, data, device, dtype),
        **config.model.model_dump(mode="json"),
        **about,
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not {"alone", "ratio", "bytes"} <= set(record):
        return None
    numbers = [record["alone"], record["bytes"], record["ratio"] or 0]
    return record if all(isinstance(number, int | float) for number in numbers) else None


def _keep(path: Path, record: dict[str, Any]) -> None:
    """Write ``record`` down. A full disk is no matter."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, record)


def _fastest(works: Sequence[Callable[[int], object]], device: torch.device) -> list[float]:
    """Return the least seconds of a step of each of ``works``, which take turns at a few.

    A machine that is busy with other things makes any of them slower, and none faster.
    """
    for work in works:
        work(0)
    times: list[list[float]] = [[] for _ in works]
    while not times[0] or (len(times[0]) < STEPS and sum(map(sum, times)) < SECONDS):
        for work, taken in zip(works, times, strict=True):
            for _ in range(FEW):  # the first one finds the other's numbers in the caches
                wait_for(device)
                begin = time.perf_counter()
                work(len(taken) + 1)
                wait_for(device)
                taken.append(time.perf_counter() - begin)
    return [min(taken) for taken in times]


def _seconds(work: Callable[[int], object], device: torch.device) -> float:
    """Return how long `STEPS` calls of ``work`` with the step's number take, once it is warm."""
    for step in range(WARM_UP):
        work(step)
    wait_for(device)
    begin = time.perf_counter()
    for step in range(WARM_UP, WARM_UP + STEPS):
        work(step)
    wait_for(device)
    return time.perf_counter() - begin


def _ignore(evaluation: Evaluation) -> None:
    """Take no note of a rung."""
