"""Optimizers over parameter groups: head and backbone, with and without weight decay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.models import BuiltModel

# Where one kernel updates all parameters at once (7 times faster for AdamW on the CPU).
FUSED_DEVICES = ("cpu", "cuda")

Groups = list[dict[str, Any]]


def _sgd(groups: Groups, training: TrainingSpec, fused: bool | None) -> Optimizer:
    return torch.optim.SGD(groups, lr=0.0, momentum=training.momentum, fused=fused)


def _adam(groups: Groups, training: TrainingSpec, fused: bool | None) -> Optimizer:
    return torch.optim.Adam(groups, lr=0.0, fused=fused)


def _adamw(groups: Groups, training: TrainingSpec, fused: bool | None) -> Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, fused=fused)


OPTIMIZERS: dict[str, Callable[[Groups, TrainingSpec, bool | None], Optimizer]] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}


def build_optimizer(model: BuiltModel, training: TrainingSpec) -> Optimizer:
    """Return the optimizer of ``training`` over the parameters of ``model`` that are trained.

    Its learning rate is 0 until `set_learning_rate` sets it, before every step.
    """
    groups = parameter_groups(model, training)
    fused = all(p.device.type in FUSED_DEVICES for group in groups for p in group["params"])
    return OPTIMIZERS[training.optimizer](groups, training, fused or None)


def parameter_groups(model: BuiltModel, training: TrainingSpec) -> Groups:
    """Return up to four groups: backbone and head, each with and without weight decay.

    Biases and the scales of normalization layers, that is all parameters of one dimension or
    none, are not decayed. Frozen parameters are in no group.
    """
    sorted_: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.module.named_parameters():
        if parameter.requires_grad:
            place = (model.in_head(name), parameter.ndim > 1)
            sorted_.setdefault(place, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": training.weight_decay if decayed else 0.0,
            "multiplier": training.head_multiplier if in_head else 1.0,
        }
        for (in_head, decayed), parameters in sorted(sorted_.items(), key=lambda item: item[0])
    ]


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Set the learning rate of every group to ``rate`` times the group's multiplier."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


def trained_parameters(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    """Return the parameters of all groups of ``optimizer``."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
