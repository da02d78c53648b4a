"""How many samples a second training does here: for choosing how many trials run at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import prepare
from sft_tune.trial.device import memory_of_its_own, open_device, wait_for
from sft_tune.trial.features import use_features
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import set_up

ENOUGH_STEPS = 20
BRIEF_SECONDS = 0.4
"""So long, and so many steps, tell a twentieth more from a twentieth less."""


def throughput(
    config: TrialConfig,
    *,
    device: str,
    cache: Path,
    threads: int,
    seconds: float,
    armed: Callable[[], object],
    feature_cache: bool = True,
    evaluation_batch_size: int = 256,
) -> float:
    """Train ``config`` for at most ``seconds`` on ``threads`` threads; return samples per second.

    It takes the same step again and again: steps of texts differ in length, and those who compare
    what two such measurements say must not compare batches. It is the last of a whole batch, when
    nothing waits any more to be unfrozen. The head of a backbone that is frozen then is trained on
    features, as it is in a trial; those that this makes are kept for the trials.

    Args:
        config: a configuration that is known to train.
        device: ``cpu``, or ``cuda:N``.
        cache: folder of prepared data.
        threads: CPU threads.
        seconds: how long to train, by a step more or less; quick steps are known sooner.
        armed: called after the first step, which allocates and is not counted; it returns when
            those who measure beside this one are as far.
        feature_cache: see `run_trial`, as of the next.
        evaluation_batch_size: examples at once where features are made.
    """
    where = open_device(device)
    torch.set_num_threads(threads)
    data = prepare(config.task, config.data, config.model, cache=cache)
    with memory_of_its_own(where):
        trainee = set_up(config, data, where)
        step = trainee.plan.horizon - min(2, trainee.plan.steps_per_epoch)
        trainee.enter(step)
        if feature_cache:
            use_features(trainee, cache, evaluation_batch_size)
        trainee.set_training_mode()
        train_step(trainee, step)
        wait_for(where)
        armed()
        begin, spent, steps, samples = time.perf_counter(), 0.0, 0, 0
        while spent < (seconds if steps < ENOUGH_STEPS else min(seconds, BRIEF_SECONDS)):
            samples += train_step(trainee, step)[2]
            wait_for(where)
            spent, steps = time.perf_counter() - begin, steps + 1
    return samples / spent
