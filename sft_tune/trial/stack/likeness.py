"""Whether a stack makes of a model what its module makes alone: numbers to compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sft_tune.trial.stack.shared import NotStackableError

APART = 0.02
"""Deviation of what the second's weights are more: some that are zero would hide others."""

TOLERANCES = {torch.float32: 1e-2}
"""How far numbers may be from those of a module alone, as a share of their norm."""
TOLERANCE = 0.2
"""The same where products are in a lower precision."""
SMALL = 0.01
"""Those of which it is the larger share: a gradient may be zero but for rounding."""


def compare(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Compare what a stack makes with what modules make alone, where products are in ``dtype``.

    Raises:
        NotStackableError: when they differ by more than rounding.
    """
    tolerance = TOLERANCES.get(dtype, TOLERANCE)
    norms = [float(part.norm()) for part in (other.detach().float() for other in expected)]
    least = SMALL * math.hypot(*norms)
    for one, other, norm in zip(found, expected, norms, strict=True):
        near = (one - other).detach().float().norm() <= tolerance * max(norm, least)
        if one.shape != other.shape or not near:
            raise NotStackableError("the stack makes something else of it than its modules")


def apart(parameter: Tensor) -> Tensor:
    """Return other weights, which are drawn from no trial's random numbers."""
    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return parameter + APART * noise.to(parameter)


def gradients_of(logits: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return gradients of a sum over ``logits`` in which no two count the same.

    Raises:
        NotStackableError: when one of ``parameters`` has none: optimizers pass such over.
    """
    classes = torch.linspace(0.5, 1.5, logits.shape[-1], device=logits.device)
    total = (logits.float() * classes).square().sum()
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    if any(part is None for part in found):
        raise NotStackableError("its model has weights that it does not use")
    return dict(zip(parameters, found, strict=True))


def same_states(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    """Tell whether no random number was drawn between two calls of `random_states`."""
    tensors, others = one[0], other[0]
    return one[1] == other[1] and all(torch.equal(tensors[k], others[k]) for k in tensors)
