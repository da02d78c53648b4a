"""The course of a trial, known before its first step: horizon, rungs, and which examples when."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft_tune.trial.data import bucketed_order, epoch_order
from sft_tune.trial.data.token_batches import in_batches, token_batches


@dataclass(frozen=True)
class Plan:
    """Everything here is a pure function of these numbers.

    Attributes:
        examples: in the training split.
        batch_size: examples per optimizer step.
        epochs: passes over the training split.
        rung_count: evaluations, evenly spaced over the horizon.
        seed: of the order of the examples.
        lengths: of the examples, [examples], where batches hold similar ones; None: any.
        batch_tokens: most tokens of a batch, in place of ``batch_size``; None: that counts.
        tokens: of the examples, [examples, texts], where ``batch_tokens`` counts.
    """

    examples: int
    batch_size: int
    epochs: int
    rung_count: int
    seed: int
    lengths: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    batch_tokens: int | None = None
    tokens: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    _batches: dict[int, list[Tensor]] = field(default_factory=dict, compare=False, repr=False)
    _orders: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass.

        The last batch is smaller. One that would be a single example joins the batch before it,
        because batch normalization cannot normalize one. Batches of so many tokens are as many as
        in the epoch of the trial that has the most: the others halve some.
        """
        if self.batch_tokens is not None:
            return max(len(self._cut(epoch)) for epoch in range(self.epochs))
        whole, rest = divmod(self.examples, self.batch_size)
        if rest == 0 or (rest == 1 and whole > 0):
            return whole
        return whole + 1

    @cached_property
    def horizon(self) -> int:
        """Optimizer steps of the whole trial."""
        return self.epochs * self.steps_per_epoch

    @cached_property
    def rungs(self) -> dict[int, int]:
        """Progress in percent by the number of steps done when the trial is evaluated there.

        Rung i of n is at step ceil(i * horizon / n), with progress 100 i / n rounded. Rungs that
        share a step are one, so a horizon shorter than n steps has fewer.
        """
        return {
            -(-self.horizon * i // self.rung_count): round(100 * i / self.rung_count)
            for i in range(1, self.rung_count + 1)
        }

    def indices(self, step: int) -> Tensor:
        """Return the indices of the training examples of step ``step``, int64 [batch]."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self.batch_tokens is not None:
            return self._of_tokens(epoch)[place]
        order = self._order(epoch)
        start = place * self.batch_size
        last = place == self.steps_per_epoch - 1
        return order[start:] if last else order[start : start + self.batch_size]

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders.clear()  # epochs come one after the other
            if self.lengths is None:
                order = epoch_order(self.examples, self.seed, epoch)
            else:
                whole = self.steps_per_epoch - (self.examples % self.batch_size != 0)
                order = bucketed_order(self.lengths, self.batch_size, whole, self.seed, epoch)
            self._orders[epoch] = order
        return self._orders[epoch]

    def _cut(self, epoch: int) -> list[NDArray[np.int64]]:
        """Return the batches of ``epoch`` of at most `batch_tokens`."""
        if self.tokens is None or self.batch_tokens is None:
            raise ValueError("batches of so many tokens need the lengths of the examples")
        bucketed = self.lengths is not None
        return token_batches(self.tokens, self.batch_tokens, self.seed, epoch, bucketed=bucketed)

    def _of_tokens(self, epoch: int) -> list[Tensor]:
        if epoch not in self._batches:
            self._batches.clear()
            found = in_batches(self._cut(epoch), self.steps_per_epoch)
            self._batches[epoch] = [torch.from_numpy(batch) for batch in found]
        return self._batches[epoch]
