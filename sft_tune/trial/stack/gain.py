"""How many times faster trials train as a stack than one after another: measured, in a moment."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import prepare
from sft_tune.trial.device import open_device, wait_for
from sft_tune.trial.features import use_features
from sft_tune.trial.outcome import Evaluation
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.stack.common import NotStackableError
from sft_tune.trial.stack.trials import Stack
from sft_tune.trial.step import set_up, train_step

WARM_UP = 5
STEPS = 25


def measure(config: TrialConfig, count: int, *, device: str, cache: Path, batch_size: int) -> float:
    """Return the ratio of the times of a step of ``count`` trials; 0 where they cannot be stacked.

    Raises:
        DataError, ModelError: as `run_trial`.
    """
    where = open_device(device)
    data = prepare(config.task, config.data, config.model, cache=cache)
    steps = -(-len(data.train) // config.training.batch_size)
    epochs = -(-(WARM_UP + STEPS + 1) // steps)
    config = config.model_copy(
        update={
            "training": config.training.model_copy(update={"epochs": epochs}),
            "objective": config.objective.model_copy(update={"rungs": 1}),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        stack: Stack[int] = Stack(
            device, cache, checkpoint_seconds=60, evaluation_batch_size=batch_size
        )
        try:
            for k in range(count):
                seeded = config.model_copy(update={"seed": config.seed + k})
                stack.enter(k, seeded, TrialPaths(Path(folder) / str(k)), _ignore)
        except NotStackableError:
            return 0.0
        stacked = _seconds(lambda _: stack.work(), where)
    trainee = set_up(config, data, where)
    use_features(trainee, cache, batch_size)
    trainee.set_training_mode()
    alone = _seconds(lambda step: train_step(trainee, step), where)
    return count * alone / stacked


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
