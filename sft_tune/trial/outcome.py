"""What a trial says of itself: one `Evaluation` a rung, one `Outcome` at its end. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

Reason = Literal["completed", "early_stopped", "pruned", "diverged", "out_of_memory", "stopped"]


@dataclass(frozen=True)
class Message:
    """A record that travels as a JSON object with the names of its fields as keys."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values that `json.dumps` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Return the record that `to_json` made ``record`` of; keys of later versions are left out.

        Raises:
            TypeError: when a key is missing.
        """
        known = {part.name for part in fields(cls)}
        return cls(**{key: value for key, value in record.items() if key in known})


@dataclass(frozen=True)
class Evaluation(Message):
    """A trial at one rung of its own horizon.

    Attributes:
        progress: share of the horizon that is done, in percent, 1 to 100.
        epoch: passes over the training split so far, fractional.
        step: optimizer steps so far.
        horizon: optimizer steps in all.
        train_loss: mean training loss per example since the last rung.
        metrics: on the validation split, ``loss`` (without label smoothing) included.
        learning_rate: of the last step (of the backbone where the head has its own).
        gradient_norm: median since the last rung, before clipping.
        seconds: on the device so far, earlier attempts included.
        gradient_norm_max: the largest since the last rung, before clipping.
        update_ratio: norm of an optimizer step's change over the norm of the weights: the median
            of a few steps since the last rung (see `updates`).
        samples_per_second: training examples by the time of the steps since the last rung.
        memory: peak so far in bytes, of the device (of the process on the CPU).
        examples: of validation that ``metrics`` are of, where that is a part of them.
        unsaved: what could not be saved since the last rung, in words.

    What a task's own training function does not report is None.
    """

    progress: int
    epoch: float | None
    step: int | None
    horizon: int | None
    train_loss: float | None
    metrics: dict[str, float]
    learning_rate: float | None
    gradient_norm: float | None
    seconds: float
    gradient_norm_max: float | None = None
    update_ratio: float | None = None
    samples_per_second: float | None = None
    memory: int | None = None
    examples: int | None = None
    unsaved: str = ""


@dataclass(frozen=True)
class Outcome(Message):
    """How a trial ended.

    Attributes:
        reason: why it ended.
        note: the evidence in words, and what else its reader should know; may be empty.
        value: the objective at its best rung, on the whole validation split; None when no rung
            was evaluated on all of it.
        metrics: on the validation split at the best rung.
        best_progress: the best rung, in percent.
        steps: optimizer steps done.
        horizon: optimizer steps that were planned; 0 when memory ran out before that was known,
            None for a task's own training function, whose ``steps`` are percent.
        seconds: on the device, earlier attempts included.
        peak_memory: bytes, of the device (of the process on the CPU).
        samples_per_second: training examples by the time of this attempt's training steps.
        checkpoint: path of the best weights; None where there is no best rung.
        resumed_from: the step that this attempt went on from; 0 for a fresh start.
        flags: how it did not go as configured, by name: ``micro_batch`` and ``evaluation_batch``,
            how many examples went through the model at once where the batch did not fit into
            memory; ``batch_norm_per_micro_batch``, true where that changed what was learned;
            ``cached_features``, true where the head, as long as it was trained alone, had
            kept features.
    """

    reason: Reason
    note: str
    value: float | None
    metrics: dict[str, float]
    best_progress: int | None
    steps: int
    horizon: int | None
    seconds: float
    peak_memory: int
    samples_per_second: float
    checkpoint: str | None
    resumed_from: int
    flags: dict[str, Any] = field(default_factory=dict)
