"""One step against a plain loop and the formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data import gather, prepare
from sft_tune.trial.heads import in_head
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.optimizers import build_optimizer, parameter_groups, set_learning_rate
from sft_tune.trial.plan import Plan
from sft_tune.trial.schedules import learning_rate
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import Trainee, set_up

Configure = Callable[..., TrialConfig]
CPU = torch.device("cpu")


@pytest.fixture
def set_up_digits(digits: Configure, tmp_path: Path) -> Callable[..., Trainee]:
    def make(**sections: Any) -> Trainee:
        config = digits(**sections)
        data = prepare(config.task, config.data, config.model, cache=tmp_path / "prepared")
        return set_up(config, data, CPU)

    return make


def plain_optimizer(training: TrainingSpec, module: torch.nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": training.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=training.momentum)
    kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw", "schedule": "cosine", "clip_norm": 0.5},
        {"optimizer": "sgd", "schedule": "exponential", "label_smoothing": 0.1},
        {"optimizer": "adam", "schedule": "linear", "clip_norm": None, "weight_decay": 0.1},
    ],
)
def test_training_is_what_a_plain_loop_does(
    set_up_digits: Callable[..., Trainee], settings: dict[str, Any]
) -> None:
    options = {"training": {"augment": "none", **settings}, "model": {"dropout": None}}
    ours, theirs = set_up_digits(**options), set_up_digits(**options)
    training, module, plan = ours.config.training, theirs.model.module, theirs.plan
    optimizer = plain_optimizer(training, module)
    for trainee in (ours, theirs):
        trainee.set_training_mode()
    for step in range(plan.horizon):
        rows = plan.indices(step).numpy()
        pixels = torch.from_numpy(np.asarray(theirs.data.train.pixels[rows])) / 255.0
        targets = torch.from_numpy(theirs.data.train.targets[rows])
        smoothing = training.label_smoothing
        loss = functional.cross_entropy(
            module((pixels - 0.5) / 0.5), targets, label_smoothing=smoothing
        )
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in module.parameters()])
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), training.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step, plan.horizon, plan.steps_per_epoch)
        optimizer.step()
        optimizer.zero_grad()
        our_loss, our_norm, size = train_step(ours, step)
        assert size == 8
        assert float(our_loss) == pytest.approx(loss.item(), rel=2e-4)
        assert float(our_norm) == pytest.approx(float(gradients.norm()), rel=2e-3)


def test_a_frozen_backbone_has_no_gradient_and_no_optimizer_state(
    set_up_digits: Callable[..., Trainee],
) -> None:
    trainee = set_up_digits(training={"freeze": "backbone"})
    trainee.set_training_mode()
    before = {k: v.clone() for k, v in trainee.model.module.state_dict().items()}
    for step in range(3):
        train_step(trainee, step)
    after = trainee.model.module.state_dict()
    moved = {k for k in after if not torch.equal(after[k], before[k])}
    assert moved == {"head.output.weight", "head.output.bias"}
    assert len(trainee.optimizer.state_dict()["state"]) == 2


def test_texts_are_padded_with_what_the_model_masks(sentences: Configure, tmp_path: Path) -> None:
    config = sentences()
    data = prepare(config.task, config.data, config.model, cache=tmp_path / "prepared")
    trainee = set_up(config, data, CPU)
    trainee.model.module.eval()
    with torch.inference_mode():
        together = trainee.model.logits(gather(data.train, torch.arange(6), CPU).inputs)
        alone = [
            trainee.model.logits(gather(data.train, torch.tensor([i]), CPU).inputs)
            for i in range(6)
        ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


class Backbone(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        self.head = torch.nn.Linear(4, 2)


@pytest.fixture
def model() -> BuiltModel:
    half = (0.5, 0.5, 0.5)
    return BuiltModel(Backbone(), ("head",), (half, half))


def test_groups_are_backbone_and_head_with_and_without_decay(model: BuiltModel) -> None:
    training = TrainingSpec(weight_decay=0.3, head_multiplier=5.0)
    module: Any = model.module
    optimizer = build_optimizer(model, training)
    set_learning_rate(optimizer, 0.01)
    found = {
        (group["lr"], group["weight_decay"]): {id(p) for p in group["params"]}
        for group in optimizer.param_groups
    }
    norm = module.body[1]
    assert found == {
        (0.01, 0.3): {id(module.body[0].weight)},
        (0.01, 0.0): {id(module.body[0].bias), id(norm.weight), id(norm.bias)},
        (0.05, 0.3): {id(module.head.weight)},
        (0.05, 0.0): {id(module.head.bias)},
    }


def test_frozen_parameters_are_in_no_group(model: BuiltModel) -> None:
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(in_head(name, model.head))
    groups = parameter_groups(model, TrainingSpec())
    assert sum(len(group["params"]) for group in groups) == 2


@pytest.mark.parametrize(
    ("name", "decayed"),
    [
        # Decoupled: the weight shrinks by lr * decay whatever the gradient.
        ("adamw", 1 - 0.1 * 0.5),
        # L2: the decay is a gradient; sgd follows it, adam takes a step of lr.
        ("sgd", 1 - 0.1 * 0.5),
        ("adam", 1 - 0.1),
    ],
)
def test_weight_decay_is_the_optimizers_own(model: BuiltModel, name: Any, decayed: float) -> None:
    training = TrainingSpec(optimizer=name, weight_decay=0.5)
    optimizer = build_optimizer(model, training)
    module: Any = model.module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    assert torch.allclose(module.head.weight, torch.tensor(decayed))
    assert torch.equal(module.head.bias, torch.ones(2))


# plan


@pytest.mark.parametrize(
    ("examples", "batch", "sizes"),
    [
        (10, 5, [5, 5]),
        (12, 5, [5, 5, 2]),
        (11, 5, [5, 6]),  # one example alone would have no batch statistics
        (3, 5, [3]),
        (1, 5, [1]),
        (3, 1, [1, 1, 1]),
    ],
)
def test_an_epoch_visits_every_example_once(examples: int, batch: int, sizes: list[int]) -> None:
    plan = Plan(examples=examples, batch_size=batch, epochs=2, rung_count=1, seed=0)
    assert plan.steps_per_epoch == len(sizes)
    epochs = []
    for epoch in range(2):
        steps = range(epoch * len(sizes), (epoch + 1) * len(sizes))
        batches = [plan.indices(step) for step in steps]
        assert [len(b) for b in batches] == sizes
        epochs.append(torch.cat(batches).tolist())
        assert sorted(epochs[-1]) == list(range(examples))
    if examples == 12:
        assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("examples", "rungs", "expected"),
    [
        (20, 4, {5: 25, 10: 50, 15: 75, 20: 100}),
        (10, 3, {4: 33, 7: 67, 10: 100}),
        (3, 10, {1: 30, 2: 60, 3: 100}),
        (1, 10, {1: 100}),
        (25, 1, {25: 100}),
    ],
)
def test_rungs_are_evenly_spaced_and_end_at_the_horizon(
    examples: int, rungs: int, expected: dict[int, int]
) -> None:
    plan = Plan(examples=examples, batch_size=1, epochs=1, rung_count=rungs, seed=0)
    assert plan.rungs == expected
