"""A study as it stands in our tables, and whether Optuna still has its side of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from sft_tune.spec.study import StudySpec
from sft_tune.store import optuna_tables as optuna
from sft_tune.store.database import Database
from sft_tune.store.names import not_found
from sft_tune.store.tables import studies
from sft_tune.store.values import loads


@dataclass(frozen=True)
class StudyRecord:
    """A study as it stands in our tables.

    Attributes:
        id: of the row in `sft_studies`.
        name: its name, ours and Optuna's.
        task: its task.
        optuna_study_id: Optuna's study; None when whoever registered it was killed half way.
        optuna_gone: Optuna's study was deleted or renamed (in its dashboard) behind our back.
        spec: the study file as parsed.
        spec_hash: digest of ``spec``.
        text: the study file as written.
        path: where it lay, absolute; None for a study made by a program.
        root: folder that its relative paths are relative to.
        versions: libraries and their versions at the start.
        metric: what is optimized.
        direction: ``maximize`` or ``minimize``.
        max_trials: the budget in trials, a grid's size and the default included; None: no limit.
        max_hours: the budget in hours.
        target: value at which the study stops.
        issued: tickets of the budget that are issued.
        active_seconds: time that the study was being run.
        created: when it was registered.
        updated: when its study file was last changed.
        facts: what a probe found out; see `record_facts`.
        artifacts: folder of its checkpoints and logs.
        ended: why the search ended; None while it may go on.
    """

    id: int
    name: str
    task: str
    optuna_study_id: int | None
    optuna_gone: bool
    spec: StudySpec
    spec_hash: str
    text: str
    path: str | None
    root: str | None
    versions: dict[str, str]
    metric: str
    direction: str
    max_trials: int | None
    max_hours: float | None
    target: float | None
    issued: int
    active_seconds: float
    created: datetime
    updated: datetime
    facts: dict[str, Any]
    artifacts: str
    ended: str | None


def find_study(db: Database, name: str) -> StudyRecord:
    """Return the study ``name`` of our tables.

    Raises:
        StudyNotFoundError: there is none; the message names those there are.
    """
    with db.reading() as connection:
        row = study_of(connection, name)
        if row is None:
            raise not_found(name, connection.execute(select(studies.c.name)).scalars())
        optuna_study_id = optuna_study_of(connection, name)
    return _record(row, optuna_study_id)


def study_of(connection: Connection, name: str) -> RowMapping | None:
    """Return our row of the study ``name``; None where there is none."""
    return connection.execute(select(studies).where(studies.c.name == name)).mappings().first()


def optuna_study_of(connection: Connection, name: str) -> int | None:
    """Return the id of Optuna's study ``name``; None where there is none."""
    rows = connection.execute(
        select(optuna.studies.c.study_id, optuna.studies.c.study_name).where(
            optuna.studies.c.study_name == name
        )
    )
    # MySQL takes names that differ in case for equal; we do not.
    return next((study_id for study_id, found in rows if found == name), None)


def _record(row: RowMapping, optuna_study_id: int | None) -> StudyRecord:
    attached = row["optuna_study_id"]
    same_name = (
        *("id", "name", "task", "optuna_study_id", "spec_hash", "root", "metric", "direction"),
        *("max_trials", "max_hours", "target", "issued", "active_seconds", "artifacts", "ended"),
    )
    values: dict[str, Any] = {name: row[name] for name in same_name}
    return StudyRecord(
        **values,
        # Optuna's ids are given again on SQLite: the name has to be right too.
        optuna_gone=attached is not None and attached != optuna_study_id,
        spec=StudySpec.model_validate_json(row["spec_json"]),
        text=row["source_text"],
        path=row["source_path"],
        versions=loads(row["versions_json"]),
        created=row["created_at"].replace(tzinfo=UTC),
        updated=row["updated_at"].replace(tzinfo=UTC),
        facts=loads(row["facts_json"]) or {},
    )
