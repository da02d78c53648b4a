"""A dry run: does the data load, does the model fit it, and what does a step cost?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.tasks import TASKS
from sft_tune.trial.data import BoxSplit, ImageSplit, Prepared, Split, prepare
from sft_tune.trial.device import (
    is_out_of_memory,
    memory_of_its_own,
    memory_report,
    open_device,
    peak_memory,
    wait_for,
)
from sft_tune.trial.evaluate import predict
from sft_tune.trial.models import parameter_count
from sft_tune.trial.remembered import Remembered
from sft_tune.trial.step import train_step
from sft_tune.trial.tasks import task_of
from sft_tune.trial.trainee import Trainee, make_plan, set_up

# The first step allocates and is not counted; after so many seconds one step must do.
TIMED_STEPS = 4
ENOUGH_SECONDS = 3.0
# What modules raise for inputs that they were not made for.
UNFIT = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)


def probe(
    config: TrialConfig,
    batch_sizes: Sequence[int],
    *,
    device: str,
    cache: Path,
    evaluation_batch_size: int = 256,
    batch_tokens: Sequence[int] = (),
) -> dict[str, Any]:
    """Do a few steps of ``config`` at each of ``batch_sizes``, and one batch of evaluation.

    Likewise at each of ``batch_tokens``.

    Returns:
        Plain values: ``data`` (the facts of `Prepared`), ``labels``, ``examples`` per split,
        ``parameters``, ``trained_parameters``, ``metrics`` (of one batch, before training: only
        that they can be computed matters), ``evaluation_seconds`` (of the whole validation
        split), ``setup_seconds``, and ``batch_sizes``: for each its ``batch_size``,
        ``batch_tokens`` (None where the other counts), ``steps_per_epoch``, ``ok``,
        ``seconds_per_step``, ``peak_memory`` (bytes) and ``note``.

    Raises:
        DataError: when the data is not what the configuration says.
        ModelError: when the model or its weights do not fit, or it cannot take these inputs.
    """
    where = open_device(device)
    data = prepare(config.task, config.data, config.model, cache=cache)
    facts: dict[str, Any] = {
        "data": data.facts,
        "labels": list(data.labels),
        "examples": {"train": len(data.train), "validation": len(data.validation)},
    }
    with memory_of_its_own(where):
        facts |= _model_facts(config, data, where, evaluation_batch_size)
    facts["batch_sizes"] = []
    ways: list[dict[str, Any]] = [{"batch_size": n, "batch_tokens": None} for n in batch_sizes]
    for way in [*ways, *({"batch_tokens": n} for n in batch_tokens)]:
        training = config.training.model_copy(update=way)
        sized = config.model_copy(update={"training": training})
        with memory_of_its_own(where):
            facts["batch_sizes"].append(_step_facts(sized, data, where, cache))
    return facts


def _model_facts(
    config: TrialConfig, data: Prepared, where: torch.device, batch_size: int
) -> dict[str, Any]:
    """Build the model and evaluate one batch."""
    begin = time.perf_counter()
    trainee = set_up(config, data, where)
    setup_seconds = time.perf_counter() - begin
    task, some = task_of(config.task, config.data), _first(data.validation, batch_size)
    try:
        options: dict[str, Any] = {"device": where, "dtype": trainee.dtype}
        predict(task, trainee.model, _first(some, 1), **options, batch_size=1)
        begin = time.perf_counter()
        kept = predict(task, trainee.model, some, **options, batch_size=batch_size)
        seconds = time.perf_counter() - begin
    except (*UNFIT, MemoryError) as error:
        raise _cannot_take(config, data, error) from error
    module = trainee.model.module
    return {
        "parameters": parameter_count(module),
        "trained_parameters": parameter_count(module, trained_only=True),
        "metrics": task.metrics([config.objective.metric], kept, some, data),
        "evaluation_seconds": seconds * len(data.validation) / len(some),
        "setup_seconds": setup_seconds,
    }


def _step_facts(
    config: TrialConfig, data: Prepared, where: torch.device, cache: Path
) -> dict[str, Any]:
    """Do a few steps; a batch that does not fit into memory is a fact, not an error."""
    facts: dict[str, Any] = {
        "batch_size": config.training.batch_size,
        "batch_tokens": config.training.batch_tokens,
        "steps_per_epoch": make_plan(config, data).steps_per_epoch,
        "ok": False,
        "seconds_per_step": None,
        "note": "",
    }
    try:
        trainee = set_up(config, data, where)
        working = Remembered(cache, trainee)
        trainee.portion.begin(working.recall())
        facts["seconds_per_step"] = _seconds_per_step(trainee)
        facts["ok"] = True
        working.keep(trainee.portion.found)
        if trainee.portion.found is not None:
            facts["note"] = f"in micro-batches of {trainee.portion.found}"
    except (*UNFIT, MemoryError) as error:
        if not is_out_of_memory(error):
            raise _cannot_take(config, data, error) from error
        facts["note"] = f"out of memory: {memory_report(error, where)}"
    facts["peak_memory"] = peak_memory(where)
    return facts


def _seconds_per_step(trainee: Trainee) -> float:
    """Return the median time of a step; the first is left out where there are more.

    A step that found its micro-batch by trying does not count, unless there is no other.
    """
    trainee.set_training_mode()
    times: list[float] = []
    steps = min(TIMED_STEPS, trainee.plan.horizon)
    for step in range(steps):
        wait_for(trainee.device)
        begin, limit = time.perf_counter(), trainee.portion.limit
        train_step(trainee, step)
        wait_for(trainee.device)
        took = time.perf_counter() - begin
        if trainee.portion.limit != limit and step < steps - 1:
            continue
        times.append(took)
        if sum(times) > ENOUGH_SECONDS:
            break
    return statistics.median(times[1:] or times)


def _first(split: Split, count: int) -> Split:
    """Return the first ``count`` examples of ``split``."""
    targets = split.targets[:count]
    if isinstance(split, BoxSplit):
        return replace(split, targets=split.targets[:count])
    if isinstance(split, ImageSplit):
        masks = None if split.masks is None else split.masks[:count]
        return replace(split, pixels=split.pixels[:count], targets=targets, masks=masks)
    return replace(split, offsets=split.offsets[: count + 1], targets=targets)


def _cannot_take(config: TrialConfig, data: Prepared, error: Exception) -> ModelError:
    """Return what to say of a model that fails on the data that it is given."""
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    train = data.train
    size = train.pixels.shape[2:] if isinstance(train, ImageSplit) else None
    if is_out_of_memory(error):
        # Not even one example fits: larger batches are taken apart.
        smaller = {"image": "data.image_size", "audio": "data.max_seconds"}.get(
            TASKS[config.task].input, "data.max_length"
        )
        what, remedy = "runs out of memory", f"lower {smaller}, or give a smaller model"
    elif "more than 1 value per channel" in reason:
        what = f"cannot train with batch size {config.training.batch_size}"
        remedy = "batch normalization needs larger batches (or larger images)"
    elif size is not None:
        what = f"does not take images of {size[0]}x{size[1]}"
        remedy = "set data.image_size to a size it takes (224)"
    elif isinstance(train, BoxSplit):
        what, remedy = "does not take these images", "set data.image_size, or give another model"
    elif config.task == "audio-classification":
        what, remedy = "does not take these sounds", "change data.max_seconds, or the model"
    else:
        what, remedy = "does not take these texts", "lower data.max_length, or give another model"
    return ModelError(f"model.name: {config.model.name} {what}: {reason}; {remedy}")
