"""Optimizers over parameter groups: head and backbone, with and without weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sft_tune.errors import ModelError
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.lion import Lion
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.muon import MuonAndAdamW

# Where one kernel updates all parameters at once (7 times faster for AdamW on the CPU).
FUSED_DEVICES = ("cpu", "cuda")

Groups = list[dict[str, Any]]


def _sgd(groups: Groups, training: TrainingSpec, fused: bool | None) -> Optimizer:
    nesterov = bool(training.nesterov) and training.momentum > 0
    optimizer = torch.optim.SGD(
        groups, lr=0.0, momentum=training.momentum, nesterov=nesterov, fused=fused
    )
    if fused and training.momentum > 0:
        _begin_momentum(optimizer)
        # A checkpoint of before has none of parameters that had not been trained yet.
        optimizer.register_load_state_dict_post_hook(_begin_momentum)
    return optimizer


def _begin_momentum(optimizer: Optimizer) -> None:
    """Begin the momentum of each parameter that has none with 0: then the first step adds g to it.

    Torch's fused SGD makes it at the first step of a whole group, from memory that it does not
    set where that step is skipped (fp16), and fails where a group's parameters begin one by one.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def _adam(groups: Groups, training: TrainingSpec, fused: bool | None) -> Optimizer:
    return torch.optim.Adam(groups, lr=0.0, fused=fused, **_moments(training))


def _adamw(groups: Groups, training: TrainingSpec, fused: bool | None) -> Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, fused=fused, **_moments(training))


def _adafactor(groups: Groups, training: TrainingSpec, fused: bool | None) -> Optimizer:
    return torch.optim.Adafactor(groups, lr=0.0)


def _lion(groups: Groups, training: TrainingSpec, fused: bool | None) -> Optimizer:
    return Lion(groups, lr=0.0, betas=_betas(training, 0.99))


def _muon(groups: Groups, training: TrainingSpec, fused: bool | None) -> Optimizer:
    if not any(group["hidden"] for group in groups):
        raise ModelError(
            "training.optimizer: muon works on hidden matrices, and none is trained in this model "
            "(kernels of convolutions, embeddings and the head are none); choose another optimizer"
        )
    muon = {"lr": 0.0, "momentum": training.momentum, "nesterov": training.nesterov is not False}
    return MuonAndAdamW(groups, muon, {"lr": 0.0, "fused": fused, **_moments(training)})


OPTIMIZERS: dict[str, Callable[[Groups, TrainingSpec, bool | None], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
}


def build_optimizer(model: BuiltModel, training: TrainingSpec) -> Optimizer:
    """Return the optimizer of ``training`` over the parameters of ``model`` that are trained.

    Its learning rate is 0 until `set_learning_rate` sets it, before every step.

    Raises:
        ModelError: for muon, where it has nothing to work on.
    """
    groups = parameter_groups(model, training)
    fused = all(p.device.type in FUSED_DEVICES for group in groups for p in group["params"])
    return OPTIMIZERS[training.optimizer](groups, training, fused or None)


def parameter_groups(model: BuiltModel, training: TrainingSpec) -> Groups:
    """Return the groups: backbone and head, each with and without weight decay.

    Biases and the scales of normalization layers, that is all parameters of one dimension or
    none, are not decayed, unless ``training.decay_all``. For muon, the matrices of the backbone
    that are no embeddings have groups of their own, and with ``training.layer_decay`` each block
    has (Clark et al. 2020): the head and what is before it learn at the full rate, block ``i`` of
    ``n`` at ``decay^(n + 1 - i)`` of it, embeddings as block 0. Frozen parameters are in no group.
    """
    embeddings = _embeddings(model.module)
    blocks, decay = model.blocks, training.layer_decay
    sorted_: dict[tuple[bool, bool, bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.module.named_parameters():
        if parameter.requires_grad:
            in_head = model.in_head(name)
            matrix = parameter.ndim == 2 and not in_head and name not in embeddings
            hidden = training.optimizer == "muon" and matrix
            decayed = parameter.ndim > 1 or training.decay_all
            below = max(blocks.behind - blocks.depths[name], 0) if decay < 1 else 0
            sorted_.setdefault((in_head, decayed, hidden, below), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": training.weight_decay if decayed else 0.0,
            "l1": training.l1 if decayed else 0.0,
            "multiplier": training.head_multiplier if in_head else decay**below,
            "hidden": hidden,
        }
        for (in_head, decayed, hidden, below), parameters in sorted(
            sorted_.items(), key=lambda item: item[0]
        )
    ]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every group to ``rate`` times the group's multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


def add_l1(optimizer: Optimizer) -> None:
    """Add the gradient of each group's ``l1`` times its sum of absolute weights: ``l1 sign(w)``.

    Once a step, to the whole batch's gradient, so that micro-batches change nothing.
    """
    for group in optimizer.param_groups:
        parameters = [p for p in group["params"] if p.grad is not None]
        if group["l1"] and parameters:
            signs = [p.detach().sign() for p in parameters]
            torch._foreach_add_([p.grad for p in parameters], signs, alpha=group["l1"])


def trained_parameters(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    """Return the parameters of all groups of ``optimizer``."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _moments(training: TrainingSpec) -> dict[str, Any]:
    """Return what Adam and AdamW are told of their two moments."""
    epsilon = 1e-8 if training.epsilon is None else training.epsilon
    return {"betas": _betas(training, 0.999), "eps": epsilon}


def _betas(training: TrainingSpec, second: float) -> tuple[float, float]:
    return (
        0.9 if training.beta1 is None else training.beta1,
        second if training.beta2 is None else training.beta2,
    )


def _embeddings(module: nn.Module) -> set[str]:
    """Return the names of the weights of embeddings: tables, not matrices."""
    return {
        f"{name}.weight" for name, part in module.named_modules() if isinstance(part, nn.Embedding)
    }
