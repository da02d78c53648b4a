"""What is trained when, and at which rate: which tensors move at which step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.blocks import find_blocks
from sft_tune.trial.convnet import ConvNet
from sft_tune.trial.data import prepare
from sft_tune.trial.freezing import lowest_trained
from sft_tune.trial.optimizers import set_learning_rate
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import Trainee, set_up

Configure = Callable[..., TrialConfig]
CPU = torch.device("cpu")
CONSTANT = {"schedule": "constant", "warmup": 0.0}


@pytest.fixture
def trainee_of(tmp_path: Path) -> Callable[[TrialConfig], Trainee]:
    def make(config: TrialConfig) -> Trainee:
        data = prepare(config.task, config.data, config.model, cache=tmp_path / "prepared")
        return set_up(config, data, CPU)

    return make


def moved(trainee: Trainee, step: int) -> set[int]:
    """Return the depths of which step ``step`` changes a parameter."""
    blocks = trainee.model.blocks
    before = {k: v.clone() for k, v in trainee.model.module.named_parameters()}
    train_step(trainee, step)
    after = trainee.model.module.named_parameters()
    return {blocks.depths[name] for name, p in after if not torch.equal(p, before[name])}


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({"freeze": "none"}, {0: {0, 1, 2, 3, 5}}),
        ({"freeze": "backbone"}, {0: {5}, 11: {5}}),
        ({"freeze": "blocks", "freeze_blocks": 2}, {0: {3, 5}, 11: {3, 5}}),
        (
            {"freeze": "head_first", "unfreeze_at": 0.5},
            {0: {5}, 5: {5}, 6: {0, 1, 2, 3, 5}, 11: {0, 1, 2, 3, 5}},
        ),
        (
            {"freeze": "gradual", "unfreeze_at": 0.5},
            {0: {5}, 2: {5}, 3: {3, 5}, 4: {2, 3, 5}, 5: {1, 2, 3, 5}, 6: {0, 1, 2, 3, 5}},
        ),
        (
            {"freeze": "gradual", "unfreeze_at": 0.5, "optimizer": "sgd"},
            {2: {5}, 3: {3, 5}, 4: {2, 3, 5}, 5: {1, 2, 3, 5}, 6: {0, 1, 2, 3, 5}},
        ),
    ],
)
def test_only_what_is_open_moves(
    digits: Configure, trainee_of: Callable[..., Trainee], settings: Any, trained: Any
) -> None:
    trainee = trainee_of(digits(training={**CONSTANT, **settings}))
    trainee.set_training_mode()
    steps = {step: moved(trainee, step) for step in range(12)}
    assert {step: steps[step] for step in trained} == trained


def test_texts_freeze_by_layers_too(sentences: Configure, trainee_of: Any) -> None:
    trainee = trainee_of(sentences(training={**CONSTANT, "freeze": "blocks"}))
    trainee.set_training_mode()
    assert moved(trainee, 0) == {2, 3, 4}  # the second layer, the pooler, the head
    bert = trainee.model.module.bert
    assert [layer.training for layer in bert.encoder.layer] == [False, True]
    assert not bert.embeddings.word_embeddings.training


def test_the_steps_of_gradual_unfreezing_are_even() -> None:
    blocks = find_blocks(ConvNet(3), ("head",))
    training = TrainingSpec(freeze="gradual", unfreeze_at=0.5)
    lowest = [lowest_trained(training, i / 100, blocks) for i in range(101)]
    assert lowest == sorted(lowest, reverse=True)
    assert [lowest.index(depth) for depth in (5, 4, 3, 2, 1, 0)] == [0, 10, 20, 30, 40, 50]


def test_more_blocks_than_there_are_cannot_be_frozen(digits: Configure, trainee_of: Any) -> None:
    with pytest.raises(ModelError, match=r"the model has 3 blocks; lower it \(got 4\)"):
        trainee_of(digits(training={"freeze": "blocks", "freeze_blocks": 4}))


def test_statistics_of_frozen_batch_norms_stay(digits: Configure, trainee_of: Any) -> None:
    for settings, fixed in (
        ({"freeze_batch_norm": True}, {"norm", "blocks.0.norm1", "blocks.2.norm2"}),
        ({"freeze": "blocks", "freeze_blocks": 1}, {"norm", "blocks.0.norm1"}),
    ):
        trainee = trainee_of(digits(training={**CONSTANT, **settings}))
        trainee.set_training_mode()
        before = {k: v.clone() for k, v in trainee.model.module.named_buffers()}
        train_step(trainee, 0)
        after = dict(trainee.model.module.named_buffers())
        same = {k for k in after if torch.equal(after[k], before[k])}
        names = ("norm", "blocks.0.norm1", "blocks.2.norm2")
        assert {name for name in names if f"{name}.running_mean" in same} == fixed


def test_layer_decay_multiplies_the_rate_block_by_block(digits: Configure, trainee_of: Any) -> None:
    trainee = trainee_of(digits(training={"layer_decay": 0.5, "head_multiplier": 3.0}))
    set_learning_rate(trainee.optimizer, 0.1)
    rates = {id(p): g["lr"] for g in trainee.optimizer.param_groups for p in g["params"]}
    for name, parameter in trainee.model.module.named_parameters():
        depth = trainee.model.blocks.depths[name]
        expected = 0.3 if depth == 5 else 0.1 * 0.5 ** (4 - depth)
        assert rates[id(parameter)] == pytest.approx(expected), name


def test_the_second_phase_may_have_a_rate_of_its_own(digits: Configure, trainee_of: Any) -> None:
    phases = {"freeze": "head_first", "unfreeze_at": 0.5, "unfrozen_learning_rate": 0.0006}
    trainee = trainee_of(digits(training={"schedule": "linear", "warmup": 0.0, **phases}))
    rates = [trainee.learning_rate(step) for step in range(12)]
    peaks = [0.003] * 6 + [0.0006] * 6
    assert rates == pytest.approx([peak * (1 - i / 12) for i, peak in enumerate(peaks)])


@pytest.mark.parametrize("freeze", ["head_first", "gradual"])
def test_a_trial_resumes_in_its_phase(new_runner: Any, configure: Configure, freeze: str) -> None:
    config = configure(training={"freeze": freeze, "unfreeze_at": 0.5, "layer_decay": 0.8})
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    horizon = calm.run(config).horizon
    for at in range(1, horizon, 3):
        asked = iter([False] * 3 + [True])
        disturbed.run(config, should_stop=lambda asked=asked: next(asked), checkpoint_seconds=1e9)
        assert at <= horizon
    disturbed.run(config)
    assert disturbed.numbers() == calm.numbers()
    assert disturbed.best() == calm.best()
