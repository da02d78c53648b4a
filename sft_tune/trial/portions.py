"""How much of a batch goes through the model at once, and what happens when that does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from sft_tune.trial.data.resident import release
from sft_tune.trial.device import free_memory, is_out_of_memory

Result = TypeVar("Result")

# What fails for want of memory without saying so (oneDNN), and what cannot be made smaller (batch
# norm of one value): believed only right after an error that did say so.
IN_ITS_WAKE = re.compile(r"could not create a primitive|more than 1 value per channel")


@dataclass
class Portion:
    """How many examples of a batch go through the model at once.

    Attributes:
        limit: at most so many; None: the batch, whatever its size.
        in_pairs: while two fit, no example goes alone (then it may be three that go together):
            batch norm learns nothing from one.
        asked: the limit that the configuration asks for, whatever fits; None: it does not.
    """

    limit: int | None = None
    in_pairs: bool = False
    asked: int | None = None

    @property
    def found(self) -> int | None:
        """The limit where memory has set it; None where it did not."""
        return None if self.limit == self.asked else self.limit

    def begin(self, worked: int | None) -> None:
        """Begin with the limit that has ``worked``, or with that which is asked for."""
        limits = [limit for limit in (worked, self.asked) if limit is not None]
        self.limit = min(limits, default=None)

    def sizes(self, count: int) -> list[int]:
        """Return the sizes of the parts of a batch of ``count`` examples, as even as can be."""
        if self.limit is None or count <= self.limit:
            return [count]
        parts = -(-count // self.limit)
        if self.in_pairs and self.limit > 1:
            parts = min(parts, count // 2)
        size, larger = divmod(count, parts)
        return [size + 1] * larger + [size] * (parts - larger)

    def halve(self, count: int) -> bool:
        """Lower the limit, since a batch of ``count`` did not fit; False when nothing is lower."""
        tried = max(self.sizes(count))
        if tried == 1:
            return False
        half = (tried + 1) // 2
        self.limit = half if self.limit is None else min(half, self.limit - 1)
        return True


def within_memory(
    portion: Portion,
    count: int,
    work: Callable[[list[int]], Result],
    *,
    device: torch.device,
    undo: Callable[[], None] = lambda: None,
) -> Result:
    """Return ``work(sizes)`` over a batch of ``count``, in smaller portions until that fits.

    Args:
        portion: what to try first; it keeps what worked.
        count: examples in the batch.
        work: does the batch in parts of the sizes that it is given.
        device: whose memory to free before the next try.
        undo: takes back what a failed try has done.

    Raises:
        RuntimeError, MemoryError: when not even one example fits, and whatever else ``work``
            raises; what it did is then not undone.
    """
    ran_out: Exception | None = None
    try:
        while True:
            try:
                return work(portion.sizes(count))
            except (RuntimeError, MemoryError, ValueError) as error:
                if is_out_of_memory(error):
                    ran_out = error
                elif ran_out is None or not IN_ITS_WAKE.search(str(error)):
                    raise
                # Data that is held goes first: without it the batch may fit.
                if not release(device) and not portion.halve(count):
                    raise ran_out from (None if ran_out is error else error)
                # Its frames hold what the try had allocated.
                ran_out.__traceback__ = None
            free_memory(device)
            undo()
    finally:
        del ran_out  # else it, its frames and this one would hold each other
