"""Each optimizer against its formula, written out here, or torch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.lion import Lion
from sft_tune.trial.models import HALF, BuiltModel
from sft_tune.trial.muon import MuonAndAdamW
from sft_tune.trial.optimizers import (
    OPTIMIZERS,
    add_l1,
    build_optimizer,
    parameter_groups,
    set_learning_rate,
    trained_parameters,
)

Configure = Callable[..., TrialConfig]


class Words(nn.Module):
    """A table of words, a hidden matrix, a norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.hidden = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        answer: Tensor = self.head(self.norm(self.hidden(self.table(ids))))
        return answer


@pytest.fixture
def model() -> BuiltModel:
    torch.manual_seed(0)
    return BuiltModel(Words(), ("head",), (HALF, HALF))


def follow(model: BuiltModel, optimizer: torch.optim.Optimizer, steps: int, rate: float) -> None:
    """Do a few steps on losses that do not repeat."""
    for step in range(steps):
        loss = model.module(torch.tensor([step % 5, 1])).square().mean()
        loss.backward()
        set_learning_rate(optimizer, rate)
        optimizer.step()
        optimizer.zero_grad()


def test_lion_is_the_papers_algorithm() -> None:
    torch.manual_seed(1)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    expected, momentum = weight.detach().clone(), torch.zeros(4, 3, dtype=torch.float64)
    optimizer = Lion([{"params": [weight]}], lr=0.03, betas=(0.8, 0.95), weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(4, 3, dtype=torch.float64)
        direction = (0.8 * momentum + 0.2 * gradient).sign()
        expected = expected - 0.03 * (direction + 0.1 * expected)
        momentum = 0.95 * momentum + 0.05 * gradient
        weight.grad = gradient.clone()
        optimizer.step()
    assert torch.allclose(weight.detach(), expected, rtol=0, atol=1e-12)


def test_adafactor_is_the_papers_algorithm(model: BuiltModel) -> None:
    """Shazeer and Stern 2018, algorithms 4 and 5: of a matrix only rows and columns are kept."""
    optimizer = build_optimizer(model, TrainingSpec(optimizer="adafactor", weight_decay=0.1))
    module: Any = model.module
    weight, bias = module.hidden.weight, module.hidden.bias
    expected = {p: p.detach().double() for p in (weight, bias)}
    rows, columns, squares = torch.zeros(4, 1).double(), torch.zeros(1, 3).double(), 0.0
    torch.manual_seed(2)
    for step in range(1, 5):
        gradients = {p: torch.randn_like(p) for p in (weight, bias)}
        for parameter, gradient in gradients.items():
            parameter.grad = gradient.clone()
        set_learning_rate(optimizer, 0.02)
        optimizer.step()
        keep = 1 - step**-0.8
        square = gradients[weight].double().square()
        rows = keep * rows + (1 - keep) * square.mean(1, keepdim=True)
        columns = keep * columns + (1 - keep) * square.mean(0, keepdim=True)
        squares = keep * squares + (1 - keep) * gradients[bias].double().square()
        variances = {weight: rows * columns / rows.mean(), bias: squares}
        for parameter, decay in ((weight, 0.1), (bias, 0.0)):
            value = expected[parameter]
            size = max(1e-3, float(value.square().mean().sqrt())) * min(0.02, step**-0.5)
            update = gradients[parameter].double() / variances[parameter].sqrt()
            update /= max(1.0, float(update.square().mean().sqrt()))
            expected[parameter] = (1 - 0.02 * decay) * value - size * update
    for parameter, value in expected.items():
        assert torch.allclose(parameter.detach().double(), value, atol=1e-6)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(model: BuiltModel) -> None:
    training = TrainingSpec(optimizer="muon", weight_decay=0.1)
    start = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    follow(model, build_optimizer(model, training), 4, 0.01)
    after = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    model.module.load_state_dict(start)
    module: Any = model.module
    muon = torch.optim.Muon(
        [module.hidden.weight],
        lr=0.01,
        momentum=0.9,
        weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
    )
    decayed = [module.table.weight, module.head.weight]
    biases = [p for p in module.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}],
        lr=0.01,
    )
    for step in range(4):
        module(torch.tensor([step % 5, 1])).square().mean().backward()
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in module.named_parameters():
        assert torch.allclose(parameter, after[name], atol=1e-6), name


def test_muon_without_a_hidden_matrix_is_refused(digits: Configure) -> None:
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    model = BuiltModel(convolutions, ("2",), (HALF, HALF))
    with pytest.raises(ModelError, match="muon works on hidden matrices"):
        build_optimizer(model, TrainingSpec(optimizer="muon"))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_an_optimizer_goes_on_from_its_state_bit_for_bit(model: BuiltModel, name: Any) -> None:
    training = TrainingSpec(optimizer=name, weight_decay=0.1)
    optimizer = build_optimizer(model, training)
    follow(model, optimizer, 3, 0.01)
    weights = {k: v.clone() for k, v in model.module.state_dict().items()}
    state = optimizer.state_dict()["state"]
    kept = {i: {k: torch.as_tensor(v).clone() for k, v in s.items()} for i, s in state.items()}
    follow(model, optimizer, 3, 0.01)
    once = {k: v.clone() for k, v in model.module.state_dict().items()}
    model.module.load_state_dict(weights)
    again = build_optimizer(model, training)
    again.load_state_dict({"state": kept, "param_groups": again.state_dict()["param_groups"]})
    follow(model, again, 3, 0.01)
    assert all(torch.equal(v, once[k]) for k, v in model.module.state_dict().items())


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_first_step_of_sgd_is_torchs_own(model: BuiltModel, nesterov: bool) -> None:
    training = TrainingSpec(optimizer="sgd", nesterov=nesterov, weight_decay=0.1)
    start = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    ours = build_optimizer(model, training)
    follow(model, ours, 3, 0.1)
    once = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    model.module.load_state_dict(start)
    usual = {"momentum": 0.9, "nesterov": nesterov, "fused": True}
    follow(model, torch.optim.SGD(ours.param_groups, **usual), 3, 0.1)
    assert all(torch.equal(p, once[name]) for name, p in model.module.named_parameters())


@pytest.fixture
def _memory_of_nan() -> Iterator[None]:
    """Let memory that is not set hold NaN, not the zeros that it often holds."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_memory_of_nan")
def test_sgd_goes_on_from_0_after_a_first_step_that_overflows(model: BuiltModel) -> None:
    optimizer = build_optimizer(model, TrainingSpec(optimizer="sgd", weight_decay=0.0))
    set_learning_rate(optimizer, 0.5)
    scaler = torch.GradScaler("cpu", init_scale=2.0)
    bias: Any = model.module.get_parameter("head.bias")
    begun = bias.detach().clone()
    for gradient in (float("inf"), 2.0):
        for parameter in model.module.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(bias, begun - 0.5 * 2.0)  # the scale was halved to 1


def test_sgd_goes_on_from_a_checkpoint_without_the_momentum_of_what_was_frozen(
    model: BuiltModel,
) -> None:
    training = TrainingSpec(optimizer="sgd")
    optimizer, module = build_optimizer(model, training), model.module
    for part in ("table", "hidden"):
        module.get_submodule(part).requires_grad_(False)
    follow(model, optimizer, 2, 0.1)
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    frozen = {id(p) for p in module.parameters() if not p.requires_grad}
    trained = trained_parameters(optimizer)
    every = optimizer.state_dict()["state"]
    kept = {
        i: {k: v.clone() for k, v in every[i].items()}
        for i, p in enumerate(trained)
        if id(p) not in frozen
    }
    assert 0 < len(kept) < len(every)
    module.requires_grad_(True)
    follow(model, optimizer, 2, 0.1)
    once = {k: v.clone() for k, v in module.state_dict().items()}
    module.load_state_dict(weights)
    again = build_optimizer(model, training)
    again.load_state_dict({"state": kept, "param_groups": again.state_dict()["param_groups"]})
    follow(model, again, 2, 0.1)
    assert all(torch.equal(v, once[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"optimizer": "adamw", "beta1": 0.8, "epsilon": 1e-6},
            {"betas": (0.8, 0.999), "eps": 1e-6},
        ),
        ({"optimizer": "adam", "beta2": 0.98}, {"betas": (0.9, 0.98), "eps": 1e-8}),
        ({"optimizer": "lion"}, {"betas": (0.9, 0.99)}),
        ({"optimizer": "lion", "beta1": 0.95, "beta2": 0.98}, {"betas": (0.95, 0.98)}),
        ({"optimizer": "sgd"}, {"momentum": 0.9, "nesterov": False}),
        (
            {"optimizer": "sgd", "nesterov": True, "momentum": 0.8},
            {"momentum": 0.8, "nesterov": True},
        ),
        (
            {"optimizer": "muon", "nesterov": False, "momentum": 0.95},
            {"momentum": 0.95, "nesterov": False},
        ),
        ({"optimizer": "muon"}, {"nesterov": True}),
    ],
)
def test_settings_reach_the_optimizer(
    model: BuiltModel, settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    optimizer = build_optimizer(model, TrainingSpec(**settings))
    groups = [g for g in optimizer.param_groups if g["hidden"] or settings["optimizer"] != "muon"]
    assert {key: groups[0][key] for key in expected} == expected
    assert isinstance(optimizer, MuonAndAdamW) is (settings["optimizer"] == "muon")


@pytest.mark.parametrize("name", ["adafactor", "lion", "muon"])
def test_the_new_optimizers_decay_decoupled(model: BuiltModel, name: Any) -> None:
    optimizer = build_optimizer(model, TrainingSpec(optimizer=name, weight_decay=0.5))
    module: Any = model.module
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    assert torch.allclose(module.hidden.weight, torch.tensor(1 - 0.1 * 0.5), atol=1e-6)
    assert torch.equal(module.norm.weight, torch.ones(4))


def test_decay_all_reaches_biases_and_norms(model: BuiltModel) -> None:
    groups = parameter_groups(model, TrainingSpec(weight_decay=0.3, l1=0.01, decay_all=True))
    assert {(g["weight_decay"], g["l1"]) for g in groups} == {(0.3, 0.01)}
    groups = parameter_groups(model, TrainingSpec(weight_decay=0.3, l1=0.01))
    assert {(g["weight_decay"], g["l1"]) for g in groups} == {(0.3, 0.01), (0.0, 0.0)}


def test_l1_adds_the_gradient_of_the_sum_of_absolute_weights(model: BuiltModel) -> None:
    optimizer = build_optimizer(model, TrainingSpec(l1=0.25))
    module: Any = model.module
    module.table.weight.requires_grad_(False)
    (module(torch.tensor([0, 1])).sum() * 0).backward()
    add_l1(optimizer)
    assert torch.equal(module.hidden.weight.grad, 0.25 * module.hidden.weight.sign())
    assert torch.equal(module.hidden.bias.grad, torch.zeros(4))
    assert module.table.weight.grad is None
    penalty = 0.25 * module.hidden.weight.abs().sum()
    (exact,) = torch.autograd.grad(penalty, [module.hidden.weight])
    assert torch.equal(module.hidden.weight.grad, exact)
