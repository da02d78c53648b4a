"""Activation checkpointing: blocks run again in the backward pass instead of being remembered."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from sft_tune.trial.models import BuiltModel


def rematerialize(model: BuiltModel) -> None:
    """Let each block of ``model`` keep its input only, while gradients are computed.

    The gradient is the same: random numbers are drawn again alike, and batch norm learns from the
    first run only. Models of transformers that can do it themselves do (their caches must be off).
    """
    module: Any = model.module
    if model.config is not None and getattr(module, "supports_gradient_checkpointing", False):
        # Its name before transformers 5.24 was gradient_checkpointing_enable.
        name = "activation_checkpointing_enable"
        enable = getattr(module, name, None) or module.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        return
    for names in model.blocks.names:
        for name in names:
            part = module.get_submodule(name)
            part.forward = functools.partial(_forward, part, part.forward)


def _forward(part: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _learning_nothing(part)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _learning_nothing(part: nn.Module) -> Iterator[None]:
    """Let the batch norms in ``part`` use the statistics of their batch, and not keep them."""
    norms = [m for m in part.modules() if isinstance(m, _BatchNorm) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
