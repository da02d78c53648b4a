"""What the dispatcher tells whoever watches it: plain values, no database, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sft_tune.spec.space import Value


@dataclass(frozen=True)
class TrialStarted:
    """A trial was placed on a slot; ``attempt`` is above 1 when it goes on after a loss."""

    number: int
    slot: int
    params: Mapping[str, Value]
    attempt: int


@dataclass(frozen=True)
class RungReached:
    """A trial was evaluated; ``progress`` in percent, ``value`` is the objective's.

    ``faults`` says in few words each what is wrong with it so far.
    """

    number: int
    slot: int
    progress: int
    value: float
    metrics: Mapping[str, float]
    train_loss: float | None
    pruned: bool
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialEnded:
    """A trial ended; ``reason`` is one of the words of `store`, ``value`` None where it has none.

    ``leads`` says that it is now the best of the study, ``faults`` in few words each what went
    wrong while it trained.
    """

    number: int
    slot: int | None
    reason: str
    value: float | None
    seconds: float
    note: str = ""
    leads: bool = False
    params: Mapping[str, Value] = field(default_factory=dict)
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Notice:
    """Something that a person should read: a resumed trial, a lost worker."""

    text: str


Event = TrialStarted | RungReached | TrialEnded | Notice
Notify = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Watch nothing."""
