"""How far a step moves the weights, measured at few steps and without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sft_tune.trial.optimizers import trained_parameters

MOST_NUMBERS = 2**22
"""So many weights are looked at, spread evenly over every tensor: 16 MiB for a moment."""

PER_RUNG = 4
"""Steps between two rungs at which the update is measured."""


class UpdateRatio:
    """The norm of an optimizer step's change over the norm of the weights that it changed."""

    def __init__(self, horizon: int, rungs: Iterable[int]) -> None:
        """Measure at about four steps before each of ``rungs`` (steps done), of ``horizon``."""
        self._rungs = frozenset(rungs)
        self._every = max(1, horizon // (PER_RUNG * max(1, len(self._rungs))))

    def is_due(self, step: int) -> bool:
        """Tell whether step ``step`` (from 0) is measured: it depends on nothing else."""
        return (step + 1) in self._rungs or step % self._every == 0

    def before(self, optimizer: Optimizer, step: int) -> list[Tensor] | None:
        """Return a copy of some weights before step ``step``; None where it is not measured."""
        return [part.clone() for part in _sample(optimizer)] if self.is_due(step) else None

    def after(self, optimizer: Optimizer, before: Sequence[Tensor] | None) -> Tensor | None:
        """Return the ratio as a tensor of one number, on the device; None without `before`."""
        if before is None:
            return None
        pairs = zip(_sample(optimizer), before, strict=True)
        change = get_total_norm([now.float() - then.float() for now, then in pairs])
        weights = get_total_norm([then.float() for then in before])
        return change / weights.clamp_min(torch.finfo(torch.float32).tiny)


def _sample(optimizer: Optimizer) -> list[Tensor]:
    """Return some numbers of every trained parameter, the same ones each time."""
    parameters = [p for p in trained_parameters(optimizer) if p.requires_grad and p.numel()]
    cap = max(1, MOST_NUMBERS // max(1, len(parameters)))
    return [p.detach().reshape(-1)[:: -(-p.numel() // cap)] for p in parameters]
