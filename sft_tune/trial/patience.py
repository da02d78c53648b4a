"""Early stopping: a trial ends when its objective has not improved for some rungs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Patience:
    """How long nothing has improved.

    Attributes:
        reference: the value that the next ones must beat; None before the first rung.
        waited: rungs since it was set.
    """

    reference: float | None = None
    waited: int = 0

    def note(self, value: float, *, maximize: bool, least: float) -> None:
        """Note the objective of a rung: an improvement by more than ``least`` is a reference.

        A value that is not a number is no improvement.
        """
        if self.reference is None:
            self.reference = value
            return
        gain = value - self.reference if maximize else self.reference - value
        if gain > least:
            self.reference, self.waited = value, 0
        else:
            self.waited += 1

    def header(self) -> dict[str, Any]:
        """Return the state as plain values."""
        return asdict(self)
