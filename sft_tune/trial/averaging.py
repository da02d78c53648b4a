"""Averages of the weights over the steps: what is evaluated and kept in place of the last ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.device import like


class Averaging:
    """The running average of every floating-point tensor of a module's state.

    ``ema``: ``a = d a + (1 - d) w`` after each step, with ``d = min(decay, (1 + t)/(10 + t))`` at
    step ``t``, so that the first weights are soon forgotten. Batch-norm statistics are averaged
    like weights. ``swa``: the plain mean of the weights after each step from ``swa_start`` on
    (Izmailov et al. 2018; at every step, as Cha et al. 2021), batch-norm statistics are taken anew
    from training data. Before the first update there is no average.
    """

    def __init__(self, module: nn.Module, training: TrainingSpec) -> None:
        """Watch ``module``, as it is now: no tensor is added or replaced later."""
        self._module = module
        self._training = training
        self._tensors: dict[str, Tensor] = {}
        self.count = 0

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Take the weights that the step before ``progress`` (share of the horizon) has made."""
        swa = self._training.averaging == "swa"
        if swa and progress < self._training.swa_start:
            return
        own = self._current()
        self.count += 1
        if self.count == 1 or not self._tensors:
            self._tensors = {name: tensor.clone() for name, tensor in own.items()}
            return
        slow = min(self._training.ema_decay, (1 + self.count) / (10 + self.count))
        share = 1 / self.count if swa else 1 - slow
        torch._foreach_lerp_(list(self._tensors.values()), list(own.values()), share)

    @contextmanager
    def in_place(self, refresh: Callable[[nn.Module], None]) -> Iterator[None]:
        """Put the average in place of the weights inside, where there is one.

        Args:
            refresh: for swa: sets the batch-norm statistics of the module anew.
        """
        if not self.count:
            yield
            return
        own = {name: tensor.clone() for name, tensor in self._module.state_dict().items()}
        self._copy(self._tensors)
        try:
            if self._training.averaging == "swa":
                refresh(self._module)
            yield
        finally:
            self._copy(own)

    def tensors(self) -> dict[str, Tensor]:
        """Return the average, for a checkpoint; `count` belongs to it."""
        return self._tensors

    def restore(self, tensors: Mapping[str, Tensor], count: int) -> None:
        """Go on from what a checkpoint holds."""
        own = self._current()
        self._tensors = {name: like(own[name], tensors[name]) for name in own if count}
        self.count = count

    def _current(self) -> dict[str, Tensor]:
        state = self._module.state_dict()
        return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}

    @torch.no_grad()
    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        state = self._module.state_dict()
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


@torch.no_grad()
def refresh_statistics(module: nn.Module, batches: Iterator[Callable[[], object]]) -> None:
    """Set the statistics of the batch norms that learn them to the mean over ``batches``.

    Each of ``batches`` is a forward pass; all else is in evaluation, so that nothing is drawn.
    The module is left in evaluation.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative mean
        norm.train()
    if norms:
        for forward in batches:
            forward()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
