"""What a trial leaves behind: its rungs, its errors, how it ended, and whether Optuna knows.

A trial ends in two steps: `end` here, which decides; then the run layer tells Optuna and calls
`mark_told`. Whoever finds an ended trial that is not told (its runner was killed in between)
tells it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, insert, select, update

from sft_tune.spec.space import Value
from sft_tune.store.database import Database
from sft_tune.store.leases import Claim, LeaseLostError, write_end, write_if_ours
from sft_tune.store.rows import RUNG_FLOATS
from sft_tune.store.tables import ENDED, evaluations, trials
from sft_tune.store.values import (
    dumps,
    join_float,
    load_numbers,
    loads,
    plain_text,
    split_floats,
    utc,
)

STATE_OF_REASON = {
    "completed": "COMPLETE",
    "early_stopped": "COMPLETE",
    "duplicate": "COMPLETE",
    "pruned": "PRUNED",
    # Not FAIL, which samplers do not see: they are to learn that the region is bad.
    "diverged": "PRUNED",
    "out_of_memory": "PRUNED",
    "crashed": "FAIL",
    "stalled": "FAIL",
    "stopped": "FAIL",
}
"""Why a trial ended, and the state that Optuna is told."""

USABLE = ("completed", "early_stopped")
"""Reasons after which a trial's value stands for its configuration."""

REPEATABLE = (*USABLE, "pruned")
"""Reasons after which an equal configuration need not be trained again."""

_PLAIN = ("best_progress", "steps", "horizon", "peak_memory")
_FLOATS = ("value", "seconds", "samples_per_second")
_SAME = (
    *_PLAIN,
    *("id", "ordinal", "optuna_trial_id", "number", "reason", "checkpoint", "note", "error"),
    *("attempts", "duplicate_of", "seed", "last_progress", "last_value"),
)


def record_evaluation(db: Database, claim: Claim, evaluation: Mapping[str, Any]) -> None:
    """Write down a rung (see `record_evaluations`).

    Raises:
        LeaseLostError: another runner has the trial now.
    """
    for error in record_evaluations(db, [(claim, evaluation)]).values():
        raise error


def record_evaluations(
    db: Database, rungs: Sequence[tuple[Claim, Mapping[str, Any]]]
) -> dict[int, LeaseLostError]:
    """Write down rungs of several trials in one transaction, one of each.

    One at the same progress is replaced (a resumed trial replays some).

    Args:
        db: the database.
        rungs: of each trial its claim, begun, and the evaluation: `progress` (percent), `epoch`,
            `step`, `train_loss`, `metrics` (validation, with its `loss`), and what there is of
            `learning_rate`, `gradient_norm`, `gradient_norm_max`, `update_ratio`,
            `samples_per_second`, `memory`, `examples`, `seconds`.

    Returns:
        By the id of their claim the trials that another runner has now; nothing of them is written.
    """

    def write(connection: Connection) -> dict[int, LeaseLostError]:
        lost: dict[int, LeaseLostError] = {}
        rows = []
        for claim, evaluation in rungs:
            value = evaluation["metrics"].get(claim.metric)
            latest = {
                "last_progress": int(evaluation["progress"]),
                "last_value": split_floats({"value": value})["value"],
            }
            try:
                # Locks the trial's row too, so nobody else can be writing its rungs.
                write_if_ours(connection, claim, latest)
            except LeaseLostError as error:
                lost[claim.id] = error
            else:
                rows.append(_rung_row(claim, evaluation))
        _replace(connection, rows)
        return lost

    return db.write(write)


def _rung_row(claim: Claim, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    metrics = evaluation["metrics"]
    floats = {name: evaluation.get(name) for name in RUNG_FLOATS}
    floats["validation_loss"] = metrics.get("loss")
    return {
        "trial_id": claim.id,
        "progress": int(evaluation["progress"]),
        "epoch": evaluation.get("epoch"),
        "step": evaluation.get("step"),
        "memory": evaluation.get("memory"),
        "examples": evaluation.get("examples"),
        "metrics_json": dumps(dict(metrics)),
        **split_floats(floats),
    }


def _replace(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Write ``rows`` of `sft_evaluations`, in place of those of the same trial and progress."""
    if not rows:
        return
    there = connection.execute(
        select(evaluations.c.trial_id, evaluations.c.progress).where(
            evaluations.c.trial_id.in_([row["trial_id"] for row in rows])
        )
    )
    known = {(trial, progress) for trial, progress in there}
    for row in rows:
        key = {"trial_id": row["trial_id"], "progress": row["progress"]}
        if tuple(key.values()) in known:
            connection.execute(update(evaluations).filter_by(**key).values(row))
    new = [row for row in rows if (row["trial_id"], row["progress"]) not in known]
    if new:
        connection.execute(insert(evaluations), new)


def add_error(db: Database, claim: Claim, text: str) -> None:
    """Keep the error of the attempt that runs, after those of earlier attempts.

    Raises:
        LeaseLostError: another runner has the trial now.
    """
    entry = f"attempt {claim.attempts}: {plain_text(text.strip())}"

    def write(connection: Connection) -> None:
        table = claim.table
        kept = connection.execute(select(table.c.error).where(table.c.id == claim.id)).scalar()
        errors = [] if kept is None else [kept]
        if kept is None or entry not in kept:  # Not there from an earlier try that committed.
            errors.append(entry)
        write_if_ours(connection, claim, {"error": "\n\n".join(errors)})

    db.write(write)


def end(
    db: Database,
    claim: Claim,
    outcome: Mapping[str, Any],
    *,
    duplicate_of: int | None = None,
    now: float,
) -> EndedTrial:
    """Write down how the trial ended, free its lease, and return what Optuna is to be told.

    Args:
        db: the database.
        claim: the trial.
        outcome: `reason` (of `STATE_OF_REASON`), and what there is of `note`, `value`, `metrics`,
            `best_progress`, `steps`, `horizon`, `seconds`, `peak_memory`, `samples_per_second`,
            `checkpoint`, `test_metrics`, `flags`; `state` for one that is not the reason's.
        duplicate_of: number of the trial whose outcome this is.
        now: seconds since 1970.

    Raises:
        LeaseLostError: another runner has the trial now, or ended it.
        ValueError: an unknown reason, or a COMPLETE trial whose value is missing or NaN.
    """
    reason = outcome["reason"]
    if reason not in STATE_OF_REASON:
        raise ValueError(f"reason {reason!r} is none of {', '.join(STATE_OF_REASON)}")
    state = outcome.get("state") or STATE_OF_REASON[reason]
    value = outcome.get("value")
    if state == "COMPLETE" and (value is None or math.isnan(value)):
        raise ValueError(f"a trial that ended as {reason!r} needs a value (got {value})")
    values: dict[str, Any] = {
        "reason": reason,
        "final_state": state,
        "duplicate_of": duplicate_of,
        "ended_at": utc(now),
        **{name: outcome.get(name) for name in _PLAIN},
        **split_floats({name: outcome.get(name) for name in _FLOATS}),
        **{
            f"{name}_json": None if outcome.get(name) is None else dumps(outcome[name])
            for name in ("metrics", "test_metrics", "flags")
        },
        **{
            name: None if outcome.get(name) is None else plain_text(str(outcome[name]))
            for name in ("note", "checkpoint")
        },
    }
    write_end(db, claim, values)
    return _ended(db, trials.c.id == claim.id)[0]


@dataclass(frozen=True)
class EndedTrial:
    """An ended trial, with what Optuna is to be told of it.

    ``state`` is Optuna's (COMPLETE, PRUNED, FAIL); ``config`` is a `TrialConfig` as a mapping.
    """

    id: int
    ordinal: int
    optuna_trial_id: int | None
    number: int | None
    reason: str
    state: str
    value: float | None
    metrics: dict[str, float]
    best_progress: int | None
    last_progress: int | None
    last_value: float | None
    steps: int | None
    horizon: int | None
    seconds: float | None
    peak_memory: int | None
    samples_per_second: float | None
    checkpoint: str | None
    test_metrics: dict[str, float]
    flags: Any
    note: str | None
    error: str | None
    attempts: int
    duplicate_of: int | None
    seed: int | None
    config: dict[str, Any] | None
    params: dict[str, Value] | None


def mark_told(db: Database, trial: Claim | EndedTrial) -> None:
    """Write down that Optuna knows how the trial ended."""

    def write(connection: Connection) -> None:
        connection.execute(update(trials).where(trials.c.id == trial.id).values(told=True))

    db.write(write)


def untold(db: Database, study_id: int) -> list[EndedTrial]:
    """Return the ended trials that Optuna was not yet told of, in the order of their tickets."""
    return _ended(db, trials.c.study_id == study_id, trials.c.told.is_(False))


def find_duplicate(db: Database, study_id: int, fingerprint: str) -> EndedTrial | None:
    """Return the first trial of this configuration whose result can be reused, if there is one."""
    same = _ended(
        db,
        trials.c.study_id == study_id,
        trials.c.fingerprint == fingerprint,
        trials.c.reason.in_(REPEATABLE),
    )
    return same[0] if same else None


def _ended(db: Database, *conditions: ColumnElement[bool]) -> list[EndedTrial]:
    with db.reading() as connection:
        rows = connection.execute(
            select(trials).where(trials.c.state == ENDED, *conditions)
        ).mappings()
        # Sorted here: SQLite would go through all trials in that order to find a few.
        return [_ended_trial(row) for row in sorted(rows, key=lambda row: int(row["ordinal"]))]


def _ended_trial(row: RowMapping) -> EndedTrial:
    same_name: dict[str, Any] = {name: row[name] for name in _SAME}
    floats: dict[str, Any] = {
        name: join_float(row[name], row["non_finite"], name) for name in _FLOATS
    }
    return EndedTrial(
        **same_name,
        **floats,
        state=row["final_state"],
        metrics=load_numbers(row["metrics_json"]),
        test_metrics=load_numbers(row["test_metrics_json"]),
        flags=loads(row["flags_json"]),
        config=loads(row["config_json"]),
        params=loads(row["params_json"]),
    )
