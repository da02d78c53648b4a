"""Faults of a trial, and the rungs that they are read off (see `fault_rules`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

SHORT = {
    "diverging": "diverging",
    "exploding_gradients": "exploding gradients",
    "vanishing_gradients": "vanishing gradients",
    "overfitting": "overfitting",
    "underfitting": "underfitting",
    "plateau": "plateau",
    "noisy_validation": "noisy validation",
    "edge_of_stability": "learning rate at the edge of stability",
}
"""Every fault's name, and the words for it."""


@dataclass(frozen=True)
class Rung:
    """What the faults are read off; None where it was not measured.

    Attributes:
        progress: percent of the trial's horizon.
        value: the objective.
        train_loss: mean since the rung before.
        validation_loss: on the validation split.
        gradient_norm: median since the rung before.
        gradient_norm_max: largest since the rung before.
        update_ratio: norm of a step's change over the norm of the weights.
    """

    progress: int
    value: float
    train_loss: float | None = None
    validation_loss: float | None = None
    gradient_norm: float | None = None
    gradient_norm_max: float | None = None
    update_ratio: float | None = None

    @classmethod
    def of(cls, evaluation: Mapping[str, Any], metric: str) -> Rung:
        """Return the rung that a worker reported (an `Evaluation` as a mapping)."""
        metrics = evaluation["metrics"]
        names = ("train_loss", "gradient_norm", "gradient_norm_max", "update_ratio")
        return cls(
            progress=evaluation["progress"],
            value=metrics[metric],
            validation_loss=metrics.get("loss"),
            **{name: evaluation.get(name) for name in names},
        )


@dataclass(frozen=True)
class Fault:
    """Something that went wrong: a name of `SHORT`, since which progress, the evidence in words."""

    name: str
    since: int | None
    evidence: str

    @property
    def short(self) -> str:
        """The fault in few words: ``overfitting since 40 %``."""
        words = SHORT.get(self.name, self.name)
        return words if self.since is None else f"{words} since {self.since} %"


def to_flags(faults: Sequence[Fault]) -> list[dict[str, Any]]:
    """Return ``faults`` as plain values, for a trial's flags."""
    return [asdict(fault) for fault in faults]


def from_flags(flags: Any) -> list[Fault]:
    """Return the faults among a trial's ``flags``; none where there are none."""
    found = flags.get("faults", ()) if isinstance(flags, Mapping) else ()
    return [Fault(entry["name"], entry.get("since"), entry["evidence"]) for entry in found]
