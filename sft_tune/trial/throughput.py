"""How many samples a second training does here: for choosing how many trials run at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import prepare
from sft_tune.trial.device import memory_of_its_own, open_device, wait_for
from sft_tune.trial.step import set_up, train_step


def throughput(
    config: TrialConfig,
    *,
    device: str,
    cache: Path,
    threads: int,
    seconds: float,
    armed: Callable[[], object],
) -> float:
    """Train ``config`` for about ``seconds`` on ``threads`` threads; return samples per second.

    Args:
        config: a configuration that is known to train.
        device: ``cpu``, or ``cuda:N``.
        cache: folder of prepared data.
        threads: CPU threads.
        seconds: how long to train at least, and at least one step.
        armed: called after the first step, which allocates and is not counted; it returns when
            those who measure beside this one are as far.
    """
    where = open_device(device)
    torch.set_num_threads(threads)
    data = prepare(config.task, config.data, config.model, cache=cache)
    with memory_of_its_own(where):
        trainee = set_up(config, data, where)
        trainee.set_training_mode()
        train_step(trainee, 0)
        wait_for(where)
        armed()
        begin, step, samples = time.perf_counter(), 1, 0
        while (spent := time.perf_counter() - begin) < seconds:
            samples += train_step(trainee, step % trainee.plan.horizon)[2]
            wait_for(where)
            step += 1
    return samples / spent
