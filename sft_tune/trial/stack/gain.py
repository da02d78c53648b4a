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
from dataclasses import replace
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
from sft_tune.trial.outcome import Evaluation
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.remembered import STEP, facts_of, replace_json
from sft_tune.trial.stack.room import least_bytes, most_of
from sft_tune.trial.stack.shared import NotStackableError
from sft_tune.trial.stack.trials import Stack
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import Trainee, make_plan, set_up

FOLDER = "stacked"
FEW = 3
"""Steps that are measured at a time, after one to warm up; ..."""
STEPS = 25
"""... so many in all, or fewer ..."""
SECONDS = 0.5
"""... where they take longer than this."""

LEAST_SECONDS = 60.0
"""Of training that the trials of a study take one after another, where models are measured."""

LARGE = 0.25
"""Seconds of a step whose kernels fill any device, and that a measurement should not wait for."""

PASSED = 8
"""What a head takes of a batch, in copies of its features: masks, hidden layers, gradients."""

COMPARISON = 2
"""By which a stack on a GPU was refused: since 2, in full single precision."""


class Gain(NamedTuple):
    """What a stack gives.

    Attributes:
        ratio: of the times of a step of so many trials; 0 where they cannot be stacked.
        most: trials that the device's memory holds; None: that is not known.
    """

    ratio: float
    most: int | None = None


def measure(
    config: TrialConfig,
    batch_sizes: Sequence[int],
    *,
    trials: int | None,
    device: str,
    cache: Path,
    batch_size: int,
) -> Gain:
    """Return what a stack of trials like ``config`` gives.

    Args:
        config: of one of them.
        batch_sizes: of each that is to be in the stack, equal ones side by side.
        trials: in all; None: no one knows.
        device: see `run_trial`, as of the next.
        cache: of prepared data, features and what is remembered.
        batch_size: of evaluation.

    Raises:
        DataError, ModelError: as `run_trial`.
    """
    where = open_device(device)
    data = prepare(config.task, config.data, config.model, cache=cache)
    steps = [-(-len(data.train) // size) for size in batch_sizes]
    epochs = config.training.epochs
    in_all = math.inf if trials is None else trials * epochs * sum(steps) / len(steps)
    epochs = -(-2 * (STEPS + FEW + 1) // min(steps))
    config = config.model_copy(
        update={
            "training": config.training.model_copy(update={"epochs": epochs}),
            "objective": config.objective.model_copy(update={"rungs": 1}),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        stack = _Tried(config, batch_sizes, where, cache, batch_size, Path(folder))
        if trains_models(config):
            return _of_models(stack, data, in_all)
        return _of_heads(stack, data)


class _Tried:
    """A stack of trials of one configuration, with seeds and batch sizes of their own."""

    def __init__(
        self,
        config: TrialConfig,
        sizes: Sequence[int],
        device: torch.device,
        cache: Path,
        batch_size: int,
        folder: Path,
    ) -> None:
        self.config, self.sizes, self.device, self.cache = config, sizes, device, cache
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
            seeded = _with_batches_of(self.sizes[k], seeded)
            self.stack.enter(k, seeded, TrialPaths(self._folder / str(k)), _ignore)

    def step(self, _: int) -> None:
        """Do one step of all."""
        self.stack.work()

    def ratio(self, trainee: Trainee) -> float:
        """Return how many times faster a step of all is than theirs alone, on ``trainee``."""
        sizes = self.sizes[: len(self.stack)]
        works = {size: self._alone(trainee, size) for size in sizes}
        *alone, stacked = _fastest([*works.values(), self.step], self.device)
        seconds = dict(zip(works, alone, strict=True))
        return sum(seconds[size] for size in sizes) / stacked

    def _alone(self, trainee: Trainee, size: int) -> Callable[[int], object]:
        config = _with_batches_of(size, self.config)
        one = replace(trainee, config=config, plan=make_plan(config, trainee.data))
        return lambda step: train_step(one, step)


def _with_batches_of(size: int, config: TrialConfig) -> TrialConfig:
    training = config.training.model_copy(update={"batch_size": size})
    return config.model_copy(update={"training": training})


def _of_heads(tried: _Tried, data: Prepared) -> Gain:
    trainee = set_up(tried.config, data, tried.device)
    use_features(trainee, tried.cache, tried.batch_size)
    try:
        tried.fill(1)
        most = 1 + most_of(tried.device, _bytes_of_head(trainee, max(tried.sizes)))
        tried.fill(min(len(tried.sizes), most))
    except (NotStackableError, RuntimeError, MemoryError) as error:
        if not isinstance(error, NotStackableError) and not is_out_of_memory(error):
            raise
        return Gain(0.0)
    trainee.set_training_mode()
    return Gain(tried.ratio(trainee), most)


def _bytes_of_head(trainee: Trainee, batch_size: int) -> int:
    """Return what a trial takes of the device that trains its head."""
    features = trainee.features["train"].features
    of_batch = 4 * PASSED * batch_size * math.prod(features.shape[1:])
    return least_bytes(trainee.model.module) + of_batch


def _of_models(tried: _Tried, data: Prepared, steps: float) -> Gain:
    """Return what is remembered, or measured where all trials do so many ``steps``."""
    facts = _facts(tried, data)
    path = tried.cache / FOLDER / f"{key_of(facts)}.json"
    known = _read(path)
    if known is None or (known["ratio"] is None and _may_repay(known["alone"], steps)):
        try:
            known = _tried_out(tried, data, steps)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return Gain(0.0)  # another time there may be more
        # What is hardly too large may have been slow for once: another time it is measured anew.
        if known["ratio"] is not None or not LARGE < known["alone"] < 2 * LARGE:
            _keep(path, known)
    if known["ratio"] is None:
        return Gain(0.0)
    return Gain(known["ratio"], most_of(tried.device, known["bytes"]))


def _may_repay(alone: float, steps: float) -> bool:
    """Tell whether to measure a stack, given the seconds of a step and how many there are."""
    return alone * steps >= LEAST_SECONDS and alone <= LARGE


def _tried_out(tried: _Tried, data: Prepared, steps: float) -> dict[str, Any]:
    """Return the seconds of a step alone; and a stack's gain and bytes, where that may repay."""
    trainee = set_up(tried.config, data, tried.device)
    try:
        tried.fill(1)  # most that cannot be stacked are refused here, before anything is timed
        (alone,) = _fastest([lambda step: train_step(trainee, step)], tried.device)
        found = {"alone": alone, "ratio": None, "bytes": 0}
        return {**found, **(_found(tried, trainee) if _may_repay(alone, steps) else {})}
    except NotStackableError:
        return {"alone": 0.0, "ratio": 0.0, "bytes": 0}


def _found(tried: _Tried, trainee: Trainee) -> dict[str, Any]:
    """Return the bytes of a trial, and the ratio of as many as memory holds of those tried."""
    device = tried.device
    with memory_of_its_own(device):
        before = _used(device)
        tried.fill(2)
        two = tried.ratio(trainee)
        # The first was there before.
        taken = peak_memory(device) - before
    size = max(taken, least_bytes(trainee.model.module))
    found = {"ratio": two, "bytes": size}
    count = min(len(tried.sizes), most_of(device, size))
    # More do not make up for what two already lose.
    if count > 2 and found["ratio"] > 1:
        tried.fill(count)
        found["ratio"] = tried.ratio(trainee)
    return found


def _used(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def _facts(tried: _Tried, data: Prepared) -> dict[str, Any]:
    config, device, sizes = tried.config, tried.device, tried.sizes
    threads = torch.get_num_threads() if device.type == "cpu" else None
    dtype = resolve_precision(config.training.precision, device)
    about = {"count": len(sizes), "threads": threads, "torch": torch.__version__, "step": STEP}
    if device.type == "cuda":
        about["comparison"] = COMPARISON
    return {
        **facts_of(config, data, device, dtype),
        **config.model.model_dump(mode="json"),
        **about,
        **({"batch_sizes": list(sizes)} if len(set(sizes)) > 1 else {}),
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


def _ignore(evaluation: Evaluation) -> None:
    """Take no note of a rung."""
