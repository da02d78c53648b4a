"""Trials whose data lies whole on their device (here the CPU, where a test has to ask for it)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import prepare
from sft_tune.trial.data.resident import arrays_of, held_bytes, hold, release
from sft_tune.trial.device import free_memory
from sft_tune.trial.features import use_features
from sft_tune.trial.trainee import set_up

Configure = Callable[..., TrialConfig]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    yield
    release(CPU)


def hold_data_of(config: TrialConfig, runner: Any) -> int:
    """Hold the data of ``config`` for the next trial; return its bytes.

    What it is copied from is no one's: a trial opens the arrays anew.
    """
    data = prepare(config.task, config.data, config.model, cache=runner.cache)
    splits = {"train": data.train, "validation": data.validation}
    hold(data.identity, splits, CPU, most=2**30)
    return sum(array.nbytes for split in splits.values() for array in arrays_of(split).values())


def test_a_trial_on_held_data_is_the_same_trial(new_runner: Any, configure: Configure) -> None:
    calm, held = new_runner("calm"), new_runner("held")
    calm.run(configure())
    size = hold_data_of(configure(), held)
    held.run(configure())
    assert held_bytes(CPU) == size > 0
    assert held.numbers() == calm.numbers()
    assert held.best() == calm.best()


def test_a_trial_takes_what_is_held_by_the_identity_of_its_data(
    new_runner: Any, digits: Configure
) -> None:
    calm, wrong, other = (new_runner(name) for name in ("calm", "wrong", "other"))
    calm.run(digits())
    data = prepare(digits().task, digits().data, digits().model, cache=calm.cache)
    blank = data.train.pixels * 0
    hold(data.identity, {"train": replace(data.train, pixels=blank)}, CPU, most=2**30)
    wrong.run(digits())
    assert wrong.numbers() != calm.numbers()
    # Other data: what is held goes.
    other.run(digits(data={"train_limit": 40}))
    assert held_bytes(CPU) == 0


def test_features_take_the_place_of_the_examples_that_were_held(
    new_runner: Any, digits: Configure
) -> None:
    frozen = digits(training={"freeze": "backbone", "augment": "none"})
    calm, held = new_runner("calm"), new_runner("held")
    assert "cached_features" in calm.run(frozen).flags
    hold_data_of(frozen, held)
    held.run(frozen)
    assert held_bytes(CPU) == 0
    assert held.numbers() == calm.numbers()


def test_features_are_gathered_from_where_they_are_held(new_runner: Any, digits: Configure) -> None:
    frozen = digits(training={"freeze": "backbone", "augment": "none"})
    calm, held = new_runner("calm"), new_runner("held")
    calm.run(frozen)
    data = prepare(frozen.task, frozen.data, frozen.model, cache=held.cache)
    trainee = set_up(frozen, data, CPU)
    use_features(trainee, held.cache, 16)
    hold(trainee.features["train"].identity, trainee.features, CPU, most=2**30)
    size = held_bytes(CPU)
    held.run(frozen)
    assert held_bytes(CPU) == size > 0
    assert held.numbers() == calm.numbers()


def test_memory_that_runs_out_takes_what_is_held(runner: Any, digits: Configure) -> None:
    assert hold_data_of(digits(), runner) > 0
    free_memory(CPU)
    assert held_bytes(CPU) == 0
