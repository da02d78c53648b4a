"""Trials of which only Optuna knows: read from its tables, our essentials from its attributes.

They are those of a study that its dashboard renamed or that another program made, and those that
were enqueued but not begun.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, select

from sft_tune.store import attributes
from sft_tune.store import optuna_tables as optuna
from sft_tune.store.rows import EvaluationRow, TrialRow
from sft_tune.store.values import aware, dumps, loads

MOST_IDS = 500
"""Above so many, a whole study is read instead of listing ids in a statement."""


class OptunaTrial(NamedTuple):
    """A row of Optuna's `trials` with its value."""

    trial_id: int
    number: int
    state: str
    started: datetime | None
    ended: datetime | None
    value: float | None


def optuna_trials(
    connection: Connection, study_id: int, numbers: Collection[int] | None = None
) -> list[OptunaTrial]:
    """Return the trials of Optuna's study, by number; with ``numbers`` those."""
    query = (
        select(
            optuna.trials.c.trial_id,
            optuna.trials.c.number,
            optuna.trials.c.state,
            optuna.trials.c.datetime_start,
            optuna.trials.c.datetime_complete,
            optuna.trial_values.c.value,
            optuna.trial_values.c.value_type,
        )
        .outerjoin(
            optuna.trial_values,
            and_(
                optuna.trial_values.c.trial_id == optuna.trials.c.trial_id,
                optuna.trial_values.c.objective == 0,
            ),
        )
        .where(optuna.trials.c.study_id == study_id)
        .order_by(optuna.trials.c.number)
    )
    if numbers is not None:
        query = query.where(optuna.trials.c.number.in_(numbers))
    return [
        OptunaTrial(*row[:5], optuna.stored_float(row[5], row[6]))
        for row in connection.execute(query).all()
    ]


def foreign_rows(
    connection: Connection, study_id: int, found: Collection[OptunaTrial]
) -> list[TrialRow]:
    """Return the rows of ``found``, trials of Optuna's study ``study_id`` without one of ours."""
    if not found:
        return []
    ids = [trial.trial_id for trial in found]
    params: dict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, name, value, distribution in params_of(connection, study_id, ids):
        params[trial_id][name] = optuna.stored_param(value, distribution)
    kept: dict[int, dict[str, Any]] = defaultdict(dict)
    marks = optuna.trial_user_attributes
    for trial_id, key, text in connection.execute(
        select(marks.c.trial_id, marks.c.key, marks.c.value_json).where(
            _of(marks.c.trial_id, study_id, ids), marks.c.key.startswith(attributes.PREFIX)
        )
    ):
        kept[trial_id][key] = loads(text)
    last = {
        trial_id: (step, value) for trial_id, step, value in reports_of(connection, study_id, ids)
    }
    return [
        _row(trial, params[trial.trial_id], kept[trial.trial_id], last.get(trial.trial_id))
        for trial in found
    ]


def _row(
    trial: OptunaTrial,
    params: dict[str, Any],
    kept: dict[str, Any],
    last: tuple[int, float | None] | None,
) -> TrialRow:
    metrics = kept.get(attributes.METRICS)
    config, flags = kept.get(attributes.CONFIG), kept.get(attributes.FLAGS)
    return TrialRow(
        number=trial.number,
        state=trial.state,
        reason=kept.get(attributes.REASON),
        value=trial.value,
        params_json=dumps(params),
        config_json=None if config is None else dumps(config),
        metrics_json=None if metrics is None else dumps(metrics),
        best_progress=kept.get(attributes.BEST_PROGRESS),
        last_progress=None if last is None else last[0],
        last_value=None if last is None else last[1],
        seconds=kept.get(attributes.SECONDS),
        attempts=kept.get(attributes.ATTEMPTS, 0),
        checkpoint=kept.get(attributes.CHECKPOINT),
        started=aware(trial.started),
        ended=aware(trial.ended),
        duplicate_of=kept.get(attributes.DUPLICATE_OF),
        note=kept.get(attributes.NOTE),
        seed=kept.get(attributes.SEED),
        flags_json=None if flags is None else dumps(flags),
    )


def foreign_evaluations(
    connection: Connection, study_id: int, metric: str | None, number: int | None
) -> list[EvaluationRow]:
    """Return what was reported of a study that is Optuna's alone, by trial and step."""
    found = optuna_trials(connection, study_id, None if number is None else [number])
    numbers = {trial.trial_id: trial.number for trial in found}
    rows = [
        EvaluationRow(
            number=numbers[trial_id],
            progress=step,
            epoch=None,
            step=None,
            train_loss=None,
            validation_loss=None,
            metrics_json=dumps({metric or "value": value}),
            learning_rate=None,
            gradient_norm=None,
            seconds=None,
        )
        for trial_id, step, value in reports_of(connection, study_id, list(numbers))
        if value is not None
    ]
    return sorted(rows, key=lambda row: (row.number, row.progress))


def params_of(
    connection: Connection, study_id: int, ids: list[int]
) -> list[tuple[int, str, float, str]]:
    """Return trial, name, number and distribution of each parameter of the trials ``ids``.

    The number is Optuna's; its distribution says which value it stands for.
    """
    table = optuna.trial_params
    rows = connection.execute(
        select(table.c.trial_id, table.c.param_name, table.c.param_value, table.c.distribution_json)
        .where(_of(table.c.trial_id, study_id, ids))
        .order_by(table.c.param_id)
    )
    return [(trial_id, name, value, text) for trial_id, name, value, text in rows]


def reports_of(
    connection: Connection, study_id: int, ids: list[int]
) -> list[tuple[int, int, float | None]]:
    """Return trial, step and value of each report of the trials ``ids``, by trial and step."""
    table = optuna.trial_intermediate_values
    rows = connection.execute(
        select(
            table.c.trial_id,
            table.c.step,
            table.c.intermediate_value,
            table.c.intermediate_value_type,
        )
        .where(_of(table.c.trial_id, study_id, ids))
        .order_by(table.c.trial_id, table.c.step)
    )
    return [
        (trial_id, step, optuna.stored_float(value, kind)) for trial_id, step, value, kind in rows
    ]


def _of(column: ColumnElement[int], study_id: int, ids: list[int]) -> ColumnElement[bool]:
    if len(ids) <= MOST_IDS:
        return column.in_(ids)
    every = select(optuna.trials.c.trial_id).where(optuna.trials.c.study_id == study_id)
    return column.in_(every)
