"""Back to where a step began: what a try that ran out of memory has changed besides gradients."""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn


class Rewind:
    """The buffers of a module (batch-norm statistics and the like) and torch's random states.

    `mark` is called before every step, so it is cheap: it copies into memory that it keeps.
    Parameters are not among it: only the optimizer changes them. Python's and NumPy's generators
    are not either: no model draws from them in a step, and to read them takes longer than all else.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """Watch the buffers that ``module`` has now, on ``device``."""
        self._device = device
        owners = [part._buffers for part in module.modules()]
        self._places = [(owner, name) for owner in owners for name in owner]
        self._buffers: list[Tensor | None] = []
        self._copies: list[tuple[list[Tensor], list[Tensor]]] = []
        self._states: tuple[Tensor, Tensor | None] | None = None

    def mark(self) -> None:
        """Remember the state that `back` returns to."""
        buffers = [owner.get(name) for owner, name in self._places]
        same = len(buffers) == len(self._buffers)
        if same and all(map(operator.is_, buffers, self._buffers)):
            for kept, current in self._copies:
                torch._foreach_copy_(kept, current)
        else:
            self._hold(buffers)
        cuda = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        self._states = (torch.get_rng_state(), cuda)

    def back(self) -> None:
        """Set all to what it was at `mark`, if that was called; it may be done again."""
        if self._states is None:
            return
        for (owner, name), buffer in zip(self._places, self._buffers, strict=True):
            owner[name] = buffer
        for kept, current in self._copies:
            torch._foreach_copy_(current, kept)
        cpu, cuda = self._states
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, self._device)

    def _hold(self, buffers: list[Tensor | None]) -> None:
        """Copy ``buffers`` anew: some are other tensors than before."""
        self._buffers = buffers
        groups: dict[Any, list[Tensor]] = defaultdict(list)
        for buffer in buffers:
            if buffer is not None:
                groups[buffer.dtype, buffer.device].append(buffer)
        # Lists of one kind are copied together, on a GPU by a few kernels in all.
        self._copies = [([b.clone() for b in group], group) for group in groups.values()]
