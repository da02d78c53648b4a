"""The trials of a stack that train, and one optimizer step of all of them.

On a GPU a step waits for nothing: what it needs is there before, and its numbers stay there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from sft_tune.trial.data.rows import sent
from sft_tune.trial.monitors import Numbers
from sft_tune.trial.stack.member import Member
from sft_tune.trial.stack.rows import Rows, family
from sft_tune.trial.stack.shared import Shared

AHEAD = 64
"""Steps whose learning rates are brought to the device at once."""


class Stepped(NamedTuple):
    """What a step of k trials came to; on a GPU numbers are tensors that stay there.

    Attributes:
        losses: mean loss of each batch, [k].
        norms: of the gradients before clipping, [k].
        ratios: of the update to the weights, [k]; None where no trial measures it.
        sizes: of the batches, [k].
    """

    losses: Numbers
    norms: Numbers
    ratios: Numbers | None
    sizes: list[int]


class Together:
    """Members that train, and what is made of them once until one enters or leaves."""

    def __init__(self, members: Sequence[Member], shared: Shared, device: torch.device) -> None:
        """Let ``members`` train together. When this fails, they are as they were."""
        self.members = sorted(
            members, key=lambda m: family(m.trainee.config.training), reverse=True
        )
        self._device = device
        smoothing = [member.trainee.config.training.label_smoothing for member in self.members]
        self._smoothing: Tensor | None = None
        if any(smoothing):
            self._smoothing = torch.tensor(smoothing, device=device)[:, None]
        self._rows = Rows([member.row for member in self.members])
        self._passes = shared.passes(self.members)
        # From here on nothing can fail.
        self._rows.take()
        self._done = 0
        self._rates = torch.empty(0)
        self._sizes: list[int] = []
        self._counts = self._real = torch.empty(0)

    def step(self) -> Stepped:
        """Do one optimizer step."""
        members, rows = self.members, self._rows
        measured = any(member.updates.is_due(member.state.step) for member in members)
        before = rows.sample() if measured else None
        places = [m.trainee.plan.indices(m.state.step) for m in members]
        sizes = [len(place) for place in places]
        logits, targets = self._passes(rows.parameters, places)
        likely = functional.log_softmax(logits.float(), dim=2)
        each = -likely.gather(2, targets[:, :, None])[:, :, 0]
        if self._smoothing is not None:
            smoothing = self._smoothing
            each = (1 - smoothing) * each - smoothing * likely.mean(dim=2)
        self._count(sizes)
        if min(sizes) < max(sizes):
            each = each * self._real
        losses = (each / self._counts).sum(dim=1)
        norms = rows.step(losses.sum(), self._next_rates())
        found = self._numbers(torch.stack([losses.detach(), norms]))
        if before is None:
            return Stepped(found[0], found[1], None, sizes)
        tiny = torch.finfo(torch.float32).tiny
        change = rows.sample().sub_(before).norm(dim=1)
        ratios = change / before.norm(dim=1).clamp_min(tiny)
        return Stepped(found[0], found[1], self._numbers(ratios[None])[0], sizes)

    def _numbers(self, found: Tensor) -> list[Numbers]:
        """Return the rows of ``found``; to read them on a GPU would be to wait for it."""
        if self._device.type == "cpu":
            numbers: list[Numbers] = found.tolist()
            return numbers
        return [list(row.unbind()) for row in found.unbind()]

    def _count(self, sizes: list[int]) -> None:
        """Keep on the device how many examples batches have, and which of the most are such."""
        if sizes == self._sizes:
            return
        self._sizes = sizes
        counts = torch.tensor(sizes)[:, None]
        self._counts = sent(counts, self._device)
        self._real = sent(torch.arange(max(sizes)) < counts, self._device)

    def _next_rates(self) -> Tensor:
        """Return the learning rates of this step, [k]."""
        place = self._done % AHEAD
        if place == 0:
            ahead = []
            for member in self.members:
                rates = member.rates[member.state.step : member.state.step + AHEAD]
                ahead.append(rates + [0.0] * (AHEAD - len(rates)))
            self._rates = sent(torch.tensor(ahead).T.contiguous(), self._device)
        self._done += 1
        return self._rates[place]
