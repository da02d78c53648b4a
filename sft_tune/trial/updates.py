"""How far a step moves the weights, measured at few steps and without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from sft_tune.trial.optimizers import trained_parameters

MOST_NUMBERS = 2**22
"""So many weights are looked at, spread evenly over every tensor: 16 MiB for a moment."""

PER_RUNG = 4
"""Steps between two rungs at which the update is measured."""

Sample = list[tuple[nn.Parameter, Tensor]]
"""Parameters, and what some of their numbers were."""


class UpdateRatio:
    """The norm of an optimizer step's change over the norm of the weights that it changed."""

    def __init__(self, horizon: int, rungs: Iterable[int]) -> None:
        """Measure at about four steps before each of ``rungs`` (steps done), of ``horizon``."""
        self._rungs = frozenset(rungs)
        self._every = max(1, horizon // (PER_RUNG * max(1, len(self._rungs))))

    def is_due(self, step: int) -> bool:
        """Tell whether step ``step`` (from 0) is measured: it depends on nothing else."""
        return (step + 1) in self._rungs or step % self._every == 0

    def before(self, optimizer: Optimizer, step: int) -> Sample | None:
        """Return a copy of some weights before step ``step``; None where it is not measured."""
        if not self.is_due(step):
            return None
        parameters = [p for p in trained_parameters(optimizer) if p.requires_grad and p.numel()]
        return [(p, _some(p, len(parameters)).float().clone()) for p in parameters]

    def after(self, before: Sample | None) -> Tensor | None:
        """Return the ratio as a tensor of one number, on the device; None without `before`.

        Only what was trained `before` the step counts: the step may open further parameters.
        """
        if before is None:
            return None
        change = get_total_norm([_some(p, len(before)).float() - then for p, then in before])
        weights = get_total_norm([then for _, then in before])
        return change / weights.clamp_min(torch.finfo(torch.float32).tiny)


def stride(numel: int, parameters: int) -> int:
    """Return between which of its ``numel`` numbers one of so many ``parameters`` is looked at."""
    cap = max(1, MOST_NUMBERS // max(1, parameters))
    return max(1, -(-numel // cap))


def _some(parameter: nn.Parameter, parameters: int) -> Tensor:
    """Return some numbers of ``parameter``, one of so many, the same ones each time."""
    return parameter.detach().reshape(-1)[:: stride(parameter.numel(), parameters)]
