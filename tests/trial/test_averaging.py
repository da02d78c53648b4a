"""Averages of the weights, early stopping, and both over an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.averaging import Averaging
from sft_tune.trial.data import gather, prepare
from sft_tune.trial.patience import Patience
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import Trainee, set_up

Configure = Callable[..., TrialConfig]
CPU = torch.device("cpu")


def averaged(module: nn.Module, training: TrainingSpec, weights: list[float]) -> list[float]:
    """Return the average after each of the ``weights``."""
    averaging, seen = Averaging(module, training), []
    for i, weight in enumerate(weights, start=1):
        with torch.no_grad():
            module.weight.fill_(weight)
        averaging.update(i / len(weights))
        with averaging.in_place(lambda _: None):
            seen.append(module.weight.item())
        assert module.weight.item() == pytest.approx(weight)
    return seen


def test_the_moving_average_is_its_formula() -> None:
    weights = [1.0, 2.0, 4.0, 8.0]
    expected, series = [1.0], 1.0
    for t, weight in enumerate(weights[1:], start=2):
        decay = min(0.2, (1 + t) / (10 + t))
        series = decay * series + (1 - decay) * weight
        expected.append(series)
    module = nn.Linear(1, 1, bias=False)
    training = TrainingSpec(averaging="ema", ema_decay=0.2)
    assert averaged(module, training, weights) == pytest.approx(expected)


def test_the_stochastic_average_is_the_mean_from_its_start() -> None:
    module = nn.Linear(1, 1, bias=False)
    training = TrainingSpec(averaging="swa", swa_start=0.5)
    weights = [1.0, 2.0, 4.0, 8.0]
    assert averaged(module, training, weights) == pytest.approx([1.0, 2.0, 3.0, 14 / 3])


@pytest.fixture
def trainee_of(tmp_path: Path) -> Callable[[TrialConfig], Trainee]:
    def make(config: TrialConfig) -> Trainee:
        data = prepare(config.task, config.data, config.model, cache=tmp_path / "prepared")
        return set_up(config, data, CPU)

    return make


def test_statistics_of_the_mean_are_those_of_the_training_data(
    digits: Configure, trainee_of: Any
) -> None:
    trainee = trainee_of(digits(training={"averaging": "swa", "swa_start": 0.5, "batch_size": 48}))
    trainee.set_training_mode()
    train_step(trainee, 0)
    norm = trainee.model.module.norm
    before = norm.running_mean.clone()
    pixels = gather(trainee.data.train, torch.arange(48), CPU, normalize=trainee.model.normalize)
    with trainee.averaged():
        seen = trainee.model.module.stem(pixels.inputs["pixel_values"])
        assert torch.allclose(norm.running_mean, seen.mean(dim=(0, 2, 3)), atol=1e-5)
        assert norm.momentum == 0.1
    assert torch.equal(norm.running_mean, before)


def test_the_average_is_what_is_evaluated_and_kept(runner: Any, digits: Configure) -> None:
    config = digits(training={"averaging": "ema", "ema_decay": 0.5}, objective={"rungs": 1})
    runner.run(config)
    weights, _ = runner.best()
    data = prepare(config.task, config.data, config.model, cache=runner.cache)
    trainee = set_up(config, data, CPU)
    trainee.set_training_mode()
    for step in range(trainee.plan.horizon):
        train_step(trainee, step)
    last = trainee.model.module.state_dict()["head.output.weight"].numpy().tobytes()
    with trainee.averaged():
        mean = trainee.model.module.state_dict()["head.output.weight"].numpy().tobytes()
    assert weights["head.output.weight"] == mean != last


def test_patience_counts_rungs_without_improvement() -> None:
    patience = Patience()
    waited = []
    for value in (0.5, 0.6, 0.605, 0.55, 0.7, 0.7, float("nan")):
        patience.note(value, maximize=True, least=0.01)
        waited.append(patience.waited)
    assert waited == [0, 0, 1, 2, 0, 1, 2]
    falling = Patience()
    for value in (1.0, 0.9, 0.95):
        falling.note(value, maximize=False, least=0.0)
    assert (falling.reference, falling.waited) == (0.9, 1)


@given(values=st.lists(st.floats(-1, 1), min_size=1, max_size=30), least=st.floats(0, 0.5))
def test_the_reference_only_improves(values: list[float], least: float) -> None:
    patience, best = Patience(), values[0]
    for value in values:
        patience.note(value, maximize=True, least=least)
        best = max(best, value)
        assert patience.reference is not None
        assert best - least - 1e-9 <= patience.reference <= best


def test_a_trial_stops_early_when_nothing_improves(runner: Any, digits: Configure) -> None:
    training = {"patience": 2, "min_change": 10.0}
    outcome = runner.run(digits(training=training, objective={"rungs": 12}))
    assert (outcome.reason, outcome.steps) == ("early_stopped", 3)
    assert "25 % of its horizon, after 2 rungs without improvement" in outcome.note
    assert outcome.value == max(e.metrics["accuracy"] for e in runner.evaluations)
    assert Path(outcome.checkpoint).is_file()


@pytest.mark.parametrize(
    "training",
    [
        {"averaging": "ema", "ema_decay": 0.9},
        {"averaging": "swa", "swa_start": 0.4},
        {"patience": 5, "min_change": 10.0},
    ],
)
def test_a_trial_stopped_at_every_step_is_the_same(
    new_runner: Any, digits: Configure, training: dict[str, Any]
) -> None:
    config = digits(training=training, objective={"rungs": 12})
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    ended = calm.run(config)
    for at in range(ended.steps):
        asked = iter([False] * min(at, 1) + [True])
        disturbed.run(config, should_stop=lambda asked=asked: next(asked), checkpoint_seconds=1e9)
    again = disturbed.run(config)
    assert (again.reason, again.steps) == (ended.reason, ended.steps)
    assert disturbed.numbers() == calm.numbers()
    assert disturbed.best() == calm.best()
