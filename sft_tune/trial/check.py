"""A dry run: does the data load, does the model fit it, and what does a step cost?"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
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
from sft_tune.trial.stand_in import StandIn, stand_in
from sft_tune.trial.step import train_step
from sft_tune.trial.tasks import Outputs, task_of
from sft_tune.trial.trainee import Trainee, make_plan, set_up

# The first step allocates and is not counted; after so many seconds one step must do. Quick steps
# are timed for so long, or so many of them.
TIMED_STEPS = 4
ENOUGH_SECONDS = 3.0
BRIEF_SECONDS = 0.1
MOST_STEPS = 100
# What modules raise for inputs that they were not made for.
UNFIT = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)


def probe(
    config: TrialConfig,
    batch_sizes: Sequence[int],
    *,
    device: str,
    cache: Path,
    evaluation_batch_size: int = 256,
    feature_cache: bool = True,
    batch_tokens: Sequence[int] = (),
) -> dict[str, Any]:
    """Do a few steps of ``config`` at each of ``batch_sizes``, and one batch of evaluation.

    Likewise at each of ``batch_tokens``. All is done as in a trial: on features of the backbone
    where it is on them (``feature_cache`` allows that). Here these are made of a part of the
    examples, and not kept.

    Returns:
        Plain values: ``data`` (the facts of `Prepared`), ``labels``, ``examples`` per split,
        ``freeze`` (of the configuration), ``parameters``, ``trained_parameters``, ``metrics`` (of
        one batch, before training: only that they can be computed matters), ``data_seconds`` (to
        prepare or load the data), ``evaluation_seconds`` (of the whole validation split),
        ``setup_seconds`` (of every trial), ``features_seconds`` (to make features, once for all
        trials; None: no trial is on them), and ``batch_sizes``: for each its ``batch_size``,
        ``batch_tokens`` (None where the other counts), ``steps_per_epoch``, ``ok``,
        ``seconds_per_step`` (in the mean, where the trained part of the model grows),
        ``peak_memory`` (bytes) and ``note``.

    Raises:
        DataError: when the data is not what the configuration says.
        ModelError: when the model or its weights do not fit, or it cannot take these inputs.
    """
    where = open_device(device)
    begin = time.perf_counter()
    data = prepare(config.task, config.data, config.model, cache=cache)
    facts: dict[str, Any] = {
        "data": data.facts,
        "labels": list(data.labels),
        "examples": {"train": len(data.train), "validation": len(data.validation)},
        "freeze": config.training.freeze,
        "data_seconds": time.perf_counter() - begin,
    }
    with memory_of_its_own(where):
        kept = cache if feature_cache else None
        found, features = _model_facts(config, data, where, evaluation_batch_size, kept)
    each = 0.0 if features is None else features.each
    facts |= found | {
        "features_seconds": None if features is None else features.once,
        "batch_sizes": [],
    }
    ways: list[dict[str, Any]] = [{"batch_size": n, "batch_tokens": None} for n in batch_sizes]
    for way in [*ways, *({"batch_tokens": n} for n in batch_tokens)]:
        training = config.training.model_copy(update=way)
        sized = config.model_copy(update={"training": training})
        with memory_of_its_own(where):
            batch, setup_seconds = _step_facts(sized, data, where, cache, features)
        facts["batch_sizes"].append(batch)
        # The first model of a process takes longer than those of later trials.
        facts["setup_seconds"] = min(facts["setup_seconds"], setup_seconds)
    facts["setup_seconds"] += each
    return facts


def _model_facts(
    config: TrialConfig,
    data: Prepared,
    where: torch.device,
    batch_size: int,
    cache: Path | None,
) -> tuple[dict[str, Any], StandIn | None]:
    """Build the model and evaluate one batch; return facts, and what stands in for features.

    ``cache`` is where features would be; None: they are not kept.
    """
    begin = time.perf_counter()
    trainee = set_up(config, data, where)
    setup_seconds = time.perf_counter() - begin
    task, some = task_of(config.task, config.data), _first(data.validation, batch_size)
    options: dict[str, Any] = {"device": where, "dtype": trainee.dtype, "batch_size": batch_size}
    try:
        predict(task, trainee.model, _first(some, 1), **options)
        features = None if cache is None else stand_in(trainee, cache, batch_size)
        # Up to here evaluation is on features, ...
        share, seconds = 0.0, 0.0
        if features is not None:
            features.enter(trainee)
            share, whole = trainee.freezing.head_alone, trainee.features["validation"]
            kept, took = _timed(lambda: predict(task, trainee.model, whole, **options))
            seconds, some = share * took, data.validation
            trainee.features, trainee.model.chain = {}, ()
        # ... and from here on through all of the model.
        if share < 1:
            some = _first(data.validation, batch_size)
            kept, took = _timed(lambda: predict(task, trainee.model, some, **options))
            seconds += (1 - share) * took * len(data.validation) / len(some)
    except (*UNFIT, MemoryError) as error:
        raise _cannot_take(config, data, error) from error
    module = trainee.model.module
    facts = {
        "parameters": parameter_count(module),
        "trained_parameters": parameter_count(module, trained_only=True),
        "metrics": task.metrics([config.objective.metric], kept, some, data),
        "evaluation_seconds": seconds,
        "setup_seconds": setup_seconds,
    }
    return facts, features


def _timed(work: Callable[[], Outputs]) -> tuple[Outputs, float]:
    begin = time.perf_counter()
    kept = work()
    return kept, time.perf_counter() - begin


def _step_facts(
    config: TrialConfig,
    data: Prepared,
    where: torch.device,
    cache: Path,
    features: StandIn | None,
) -> tuple[dict[str, Any], float]:
    """Do a few steps; a batch that does not fit into memory is a fact, not an error.

    The facts come with the seconds that the model took to be made.
    """
    facts: dict[str, Any] = {
        "batch_size": config.training.batch_size,
        "batch_tokens": config.training.batch_tokens,
        "steps_per_epoch": make_plan(config, data).steps_per_epoch,
        "ok": False,
        "seconds_per_step": None,
        "note": "",
    }
    begin, setup_seconds = time.perf_counter(), math.inf
    try:
        trainee = set_up(config, data, where)
        setup_seconds = time.perf_counter() - begin
        working = Remembered(cache, trainee)
        trainee.portion.begin(working.recall())
        if features is not None:
            features.enter(trainee)
        facts["seconds_per_step"] = _mean_seconds(trainee)
        facts["ok"] = True
        working.keep(trainee.portion.found)
        if trainee.portion.found is not None:
            facts["note"] = f"in micro-batches of {trainee.portion.found}"
    except (*UNFIT, MemoryError) as error:
        if not is_out_of_memory(error):
            raise _cannot_take(config, data, error) from error
        facts["note"] = f"out of memory: {memory_report(error, where)}"
    facts["peak_memory"] = peak_memory(where)
    return facts, setup_seconds


def _mean_seconds(trainee: Trainee) -> float:
    """Return the mean time of a step over the trial.

    While blocks open one by one a step is taken to be as long as when all are open.
    """
    trainee.hold_examples()
    share, steps = trainee.freezing.head_alone, range(trainee.plan.horizon)
    alone = steps[: max(1, int(share * len(steps)))] if share else steps
    at_first = _seconds_per_step(trainee, alone[:MOST_STEPS])
    if share in (0.0, 1.0):
        return at_first
    all_open = trainee.config.training.unfreeze_at * len(steps)
    # The last batch is smaller.
    later = [step for step in steps[-TIMED_STEPS - 1 : -1] if step >= all_open] or steps[-1:]
    trainee.enter(later[0])
    trainee.hold_examples()
    return share * at_first + (1 - share) * _seconds_per_step(trainee, later)


def _seconds_per_step(trainee: Trainee, steps: Sequence[int]) -> float:
    """Return the median time of some of ``steps``; the first is left out where there are more.

    A step that found its micro-batch by trying does not count, unless there is no other.
    """
    trainee.set_training_mode()
    times: list[float] = []
    for step in steps:
        wait_for(trainee.device)
        begin, limit = time.perf_counter(), trainee.portion.limit
        train_step(trainee, step)
        wait_for(trainee.device)
        took = time.perf_counter() - begin
        if trainee.portion.limit != limit and step < steps[-1]:
            continue
        times.append(took)
        if sum(times) > (BRIEF_SECONDS if len(times) >= TIMED_STEPS else ENOUGH_SECONDS):
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
