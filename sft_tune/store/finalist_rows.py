"""Confirmation runs as people read them: a row each."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import RowMapping, select

from sft_tune.store.database import Database
from sft_tune.store.places import place_of
from sft_tune.store.tables import finalists, trials
from sft_tune.store.values import aware, join_float, load_numbers


class FinalistRow(NamedTuple):
    """A confirmation run.

    Attributes:
        number: of the trial whose configuration it trains.
        seed: that it trains with.
        phase: waiting, running, interrupted, ended.
        reason: why it ended, or None.
        value: the objective on validation, at the best rung.
        metrics: validation metrics there.
        test_metrics: metrics on the test split with the weights of that rung; empty where there
            is no test split.
        seconds: time on the device.
        attempts: how often it was begun.
        last_progress: the last rung reached, percent.
        last_value: the objective there.
        started: aware, UTC.
        ended: aware, UTC.
        host: machine of the last attempt.
        device: device of the last attempt.
        lease_owner: who runs it.
        lease_expires: until when, in seconds since 1970.
        note: evidence for ``reason``, in words.
        error: the errors of all attempts.
    """

    number: int
    seed: int
    phase: str
    reason: str | None
    value: float | None
    metrics: dict[str, float]
    test_metrics: dict[str, float]
    seconds: float | None
    attempts: int
    last_progress: int | None
    last_value: float | None
    started: datetime | None
    ended: datetime | None
    host: str | None
    device: str | None
    lease_owner: str | None
    lease_expires: float | None
    note: str | None
    error: str | None


def finalist_rows(db: Database, name: str) -> list[FinalistRow]:
    """Return the confirmation runs of the study ``name``, in the order they were asked for.

    Raises:
        StudyNotFoundError: neither we nor Optuna have the study.
    """
    with db.reading() as connection:
        place = place_of(connection, name)
        rows = connection.execute(
            select(finalists, trials.c.number)
            .join(trials, trials.c.id == finalists.c.trial_id)
            .where(trials.c.study_id == place.our_id, trials.c.number.is_not(None))
            .order_by(finalists.c.id)
        ).mappings()
        return [_row(row) for row in rows]


def _row(row: RowMapping) -> FinalistRow:
    same = (
        *("number", "seed", "reason", "attempts", "last_progress", "last_value", "host"),
        *("device", "lease_owner", "lease_expires", "note", "error"),
    )
    plain: dict[str, Any] = {name: row[name] for name in same}
    return FinalistRow(
        **plain,
        phase=row["state"],
        value=join_float(row["value"], row["non_finite"], "value"),
        metrics=load_numbers(row["validation_metrics_json"]),
        test_metrics=load_numbers(row["test_metrics_json"]),
        seconds=row["seconds"],
        started=aware(row["started_at"]),
        ended=aware(row["ended_at"]),
    )
