"""What reads return: one tuple a study, a trial, a rung. JSON is parsed when it is looked at."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from sft_tune.store.values import load_numbers, loads

RUNG_FLOATS = (
    *("train_loss", "validation_loss", "learning_rate", "gradient_norm", "seconds"),
    *("gradient_norm_max", "update_ratio", "samples_per_second"),
)
"""The columns of a rung that may be no finite number."""


@lru_cache(maxsize=16_384)
def _parsed(params_json: str | None) -> dict[str, Any]:
    """Return a point of the space; every plot of a report asks for that of every trial."""
    return loads(params_json) or {}


class StudyRow(NamedTuple):
    """A study at a glance.

    Attributes:
        name: its name.
        task: its task; None for a study that is none of ours.
        metric: what is optimized; None for a study that is none of ours.
        direction: ``maximize`` or ``minimize``.
        states: how many trials are in each of Optuna's states.
        best: value of the best completed trial.
        created: when it was registered (aware, UTC).
        ended: why the search ended; None while it may go on.
        max_trials: the budget in trials, with those that were asked for on top of it.
        max_hours: the budget in hours.
        target: value at which the study stops.
        issued: tickets of the budget that are issued.
        active_seconds: time that the study was being run.
        lease_until: when the last of its leases expires, in seconds since 1970.
        artifacts: folder of its checkpoints and logs.
        extra_trials: how many of these were asked for on top.
        wanted: ``paused`` or ``stopped`` where someone asked for it.
        priority: the higher, the sooner workers that serve many studies take it up.
        managed: whether our tables have it; if not, it is Optuna's alone (made by another
            program, or renamed in its dashboard).
        optuna_study_id: Optuna's study; None when its side is gone.
        last_active: when `active_seconds` was last counted up to, in seconds since 1970.
        leases: owner of each of its leases, and when the last of that owner expires.
        source: path of its file; a name in ``<>`` for one that a program described.
    """

    name: str
    task: str | None
    metric: str | None
    direction: str
    states: dict[str, int]
    best: float | None
    created: datetime | None
    ended: str | None
    max_trials: int | None
    max_hours: float | None
    target: float | None
    issued: int | None
    active_seconds: float | None
    lease_until: float | None
    artifacts: str | None
    extra_trials: int
    wanted: str | None
    priority: int
    managed: bool
    optuna_study_id: int | None
    last_active: float | None = None
    leases: tuple[tuple[str, float], ...] = ()
    source: str | None = None

    @property
    def trials(self) -> int:
        """How many trials there are, in whatever state."""
        return sum(self.states.values())

    @property
    def has_file(self) -> bool:
        """Whether a study file describes it, and not a program's mapping or function."""
        return self.source is None or not self.source.endswith(">")

    def is_running(self, now: float) -> bool:
        """Tell whether someone holds a lease on one of its trials at ``now``."""
        return self.lease_until is not None and self.lease_until > now

    def active_at(self, now: float) -> float | None:
        """Return `active_seconds` up to ``now``: runners count it every few seconds only."""
        if self.active_seconds is None or self.last_active is None or not self.is_running(now):
            return self.active_seconds
        return self.active_seconds + max(0.0, now - self.last_active)


class TrialRow(NamedTuple):
    """A trial, from Optuna's tables and ours.

    Attributes:
        number: its number in the study.
        state: Optuna's: RUNNING, COMPLETE, PRUNED, FAIL, WAITING.
        phase: ours: claimed, running, interrupted, ended; None for a trial that is not ours.
        reason: why it ended, or None.
        value: its objective: best over its rungs on the whole validation split.
        params_json: its point of the space.
        config_json: its complete configuration.
        metrics_json: validation metrics at its best rung.
        best_progress: the best rung, percent.
        last_progress: the last rung reached, percent.
        last_value: the objective at the last rung.
        seconds: time on the device.
        attempts: how often it was begun.
        checkpoint: path of its best weights.
        started: aware, UTC.
        ended: aware, UTC.
        host: machine of the last attempt.
        device: device of the last attempt.
        duplicate_of: number of the trial whose result it took.
        note: evidence for ``reason``, in words.
        error: the errors of all attempts.
        lease_owner: who runs it.
        lease_expires: until when, in seconds since 1970.
        steps: optimizer steps done.
        horizon: optimizer steps of its whole schedule.
        peak_memory: bytes.
        samples_per_second: of training.
        seed: its seed.
        test_metrics_json: metrics on the test split, of finalists.
        flags_json: how it did not go as configured; ``faults``: what went wrong while it trained
            (see `sft_tune.spec.faults.from_flags`).
    """

    number: int
    state: str
    phase: str | None = None
    reason: str | None = None
    value: float | None = None
    params_json: str | None = None
    config_json: str | None = None
    metrics_json: str | None = None
    best_progress: int | None = None
    last_progress: int | None = None
    last_value: float | None = None
    seconds: float | None = None
    attempts: int = 0
    checkpoint: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    host: str | None = None
    device: str | None = None
    duplicate_of: int | None = None
    note: str | None = None
    error: str | None = None
    lease_owner: str | None = None
    lease_expires: float | None = None
    steps: int | None = None
    horizon: int | None = None
    peak_memory: int | None = None
    samples_per_second: float | None = None
    seed: int | None = None
    test_metrics_json: str | None = None
    flags_json: str | None = None

    @property
    def params(self) -> dict[str, Any]:
        """Its point of the space; empty before it has begun."""
        return dict(_parsed(self.params_json))

    @property
    def config(self) -> dict[str, Any] | None:
        """Its complete configuration, a `TrialConfig` as a mapping; None before it has begun."""
        return loads(self.config_json)  # type: ignore[no-any-return]

    @property
    def metrics(self) -> dict[str, float]:
        """Validation metrics at its best rung; empty where there are none."""
        return load_numbers(self.metrics_json)

    @property
    def test_metrics(self) -> dict[str, float]:
        """Metrics on the test split; empty unless it is a finalist."""
        return load_numbers(self.test_metrics_json)

    @property
    def flags(self) -> Any:
        """What went wrong while it trained, as it was recorded; None where nothing was."""
        return loads(self.flags_json)

    @property
    def took(self) -> float | None:
        """The trial's seconds on the device; of a trial that is not ours, from start to end."""
        if self.seconds is not None:
            return self.seconds
        if self.phase is None and self.started is not None and self.ended is not None:
            return (self.ended - self.started).total_seconds()
        return None

    def is_alive(self, now: float) -> bool:
        """Tell whether a runner holds its lease at ``now``."""
        return self.lease_expires is not None and self.lease_expires > now


class EvaluationRow(NamedTuple):
    """A rung of a trial.

    Attributes:
        number: the trial's.
        progress: percent of its horizon.
        epoch: passes over the training split.
        step: optimizer steps.
        train_loss: mean since the rung before.
        validation_loss: on the validation split.
        metrics_json: every validation metric.
        learning_rate: at this step.
        gradient_norm: median since the rung before, before clipping.
        seconds: the trial's time on the device so far.
        gradient_norm_max: the largest since the rung before, before clipping.
        update_ratio: norm of an optimizer step's change over the norm of the weights.
        samples_per_second: of training since the rung before.
        memory: peak so far, bytes.
        examples: of validation that the metrics are of, where that is a part of them.
    """

    number: int
    progress: int
    epoch: float | None
    step: int | None
    train_loss: float | None
    validation_loss: float | None
    metrics_json: str
    learning_rate: float | None
    gradient_norm: float | None
    seconds: float | None
    gradient_norm_max: float | None = None
    update_ratio: float | None = None
    samples_per_second: float | None = None
    memory: int | None = None
    examples: int | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Every validation metric."""
        return load_numbers(self.metrics_json)
