"""Studies: registered, found, changed and deleted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from sft_tune.errors import StudyExistsError
from sft_tune.spec.plan import make_plan
from sft_tune.spec.study import StudySpec
from sft_tune.store import optuna_tables as optuna
from sft_tune.store.attributes import study_attributes
from sft_tune.store.database import Database
from sft_tune.store.names import not_found
from sft_tune.store.optuna_storage import ensure_optuna_study, open_optuna_storage, same_name_error
from sft_tune.store.records import StudyRecord, find_study, optuna_study_of, study_of
from sft_tune.store.tables import evaluations, finalists, queue, studies, trials
from sft_tune.store.values import dumps, plain_text, utc

__all__ = [
    "StudyRecord",
    "delete_study",
    "ensure_optuna_study",
    "find_study",
    "open_optuna_storage",
    "record_facts",
    "register_study",
    "set_ended",
    "spec_hash",
    "update_study",
]


def spec_hash(spec: StudySpec) -> str:
    """Return a digest of ``spec``; equal ones say the same in every key."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def register_study(
    db: Database,
    spec: StudySpec,
    *,
    text: str,
    path: str | None,
    root: str | None,
    versions: Mapping[str, str],
    facts: Mapping[str, Any] | None,
    artifacts: str,
    now: float,
) -> StudyRecord:
    """Return the study named as ``spec`` says, registered from the arguments where it is new.

    One that is there is returned as it is: compare `spec_hash`. Of two processes that register
    one name at once, one does and the other reads it. Optuna's study is made too.

    Raises:
        StudyExistsError: Optuna has a study of this name that is none of ours, or had ours.
    """
    row = {
        **_spec_columns(spec, text),
        "name": spec.name,
        "source_path": path,
        "root": root,
        "versions_json": dumps(dict(versions)),
        "facts_json": None if facts is None else dumps(dict(facts)),
        "artifacts": artifacts,
        "issued": 0,
        "active_seconds": 0.0,
        "created_at": utc(now),
        "updated_at": utc(now),
    }

    def add(connection: Connection) -> None:
        if study_of(connection, spec.name) is not None:
            return
        connection.execute(insert(studies).values(row))
        # After our insert: had another runner of ours made Optuna's study, this would not be new.
        taken = connection.execute(
            select(optuna.studies.c.study_name).where(optuna.studies.c.study_name == spec.name)
        ).scalar()
        if taken == spec.name:
            raise StudyExistsError(
                f"an Optuna study named {spec.name!r} is in the database, and sft_tune did not "
                "make it; choose another name for this study"
            )
        if taken is not None:
            raise same_name_error(taken, spec.name)

    try:
        db.write(add)
    except IntegrityError:
        pass  # Another process registered it since we looked; what it wrote is read below.
    return _with_optuna(db, find_study(db, spec.name))


def _spec_columns(spec: StudySpec, text: str) -> dict[str, Any]:
    return {
        "task": spec.task,
        "spec_json": spec.model_dump_json(),
        "spec_hash": spec_hash(spec),
        "source_text": plain_text(text, longest=1_000_000),
        "metric": spec.objective.metric,
        "direction": spec.direction,
        "max_trials": make_plan(spec).limit(spec.budget),
        "max_hours": spec.budget.hours,
        "target": spec.budget.target,
    }


def update_study(
    db: Database,
    study_id: int,
    spec: StudySpec,
    *,
    text: str,
    path: str | None = None,
    versions: Mapping[str, str] | None = None,
    now: float,
) -> StudyRecord:
    """Put a changed study file in place of the registered one; the study may go on.

    Args:
        db: the database.
        study_id: of the study's row.
        spec: the study file as parsed, its name unchanged.
        text: the study file as written.
        path: where it lies; None: where the registered one lay.
        versions: libraries and their versions; None: those of the start stay.
        now: seconds since 1970.

    Raises:
        StudyNotFoundError: the study was deleted.
        StudyExistsError: its Optuna side was deleted or renamed behind our back.
    """
    values = {**_spec_columns(spec, text), "updated_at": utc(now)}
    if path is not None:
        values["source_path"] = path
    if versions is not None:
        values["versions_json"] = dumps(dict(versions))
    if find_study(db, spec.name).spec_hash != values["spec_hash"]:
        values["ended"] = None  # By the old file; a larger budget lets it go on.
    _write(db, study_id, values)
    return _with_optuna(db, find_study(db, spec.name))


def _with_optuna(db: Database, record: StudyRecord) -> StudyRecord:
    """Make Optuna's study of ``record`` where it is missing, and set its attributes."""
    if record.optuna_gone:
        raise StudyExistsError(
            f"study {record.name!r} cannot go on: its Optuna side was deleted or renamed outside "
            f"sft_tune; remove what is left with `sft-tune delete {record.name}`, or choose "
            "another name"
        )
    storage = open_optuna_storage(db)
    optuna_study_id = ensure_optuna_study(storage, record.name, record.direction, record.metric)
    for key, value in study_attributes(record).items():
        storage.set_study_user_attr(optuna_study_id, key, value)
    if record.optuna_study_id is None:
        _write(db, record.id, {"optuna_study_id": optuna_study_id})
    return replace(record, optuna_study_id=optuna_study_id)


def set_ended(db: Database, study_id: int, reason: str | None) -> None:
    """Write down why the search ended; None: it goes on.

    A study for which something was asked from outside meanwhile goes on.
    """
    waiting = select(queue.c.id).where(queue.c.study_id == study_id, queue.c.ordinal.is_(None))

    def write(connection: Connection) -> None:
        change = update(studies).where(studies.c.id == study_id)
        if reason is not None:
            change = change.where(~waiting.exists())
        text = None if reason is None else plain_text(reason)
        connection.execute(change.values(ended=text))

    db.write(write)


def record_facts(db: Database, study_id: int, facts: Mapping[str, Any]) -> None:
    """Write down what was found out about data and model (JSON), in place of earlier facts."""
    _write(db, study_id, {"facts_json": dumps(dict(facts))})


def _write(db: Database, study_id: int, values: Mapping[str, Any]) -> None:
    def write(connection: Connection) -> None:
        connection.execute(update(studies).where(studies.c.id == study_id).values(values))

    db.write(write)


def delete_study(db: Database, name: str) -> str | None:
    """Remove the study ``name``, ours and Optuna's, and return its folder of artifacts.

    The folder itself is the caller's to remove. A study of Optuna's alone is removed too.

    Raises:
        StudyNotFoundError: neither we nor Optuna have it.
    """
    from optuna import delete_study as delete_optuna_study

    with db.reading() as connection:
        row = study_of(connection, name)
        optuna_study_id = optuna_study_of(connection, name)
        if row is None and optuna_study_id is None:
            raise not_found(name, connection.execute(select(studies.c.name)).scalars())
    if optuna_study_id is not None:
        # First: a crash here leaves a study that can be named and deleted again.
        delete_optuna_study(study_name=name, storage=open_optuna_storage(db))
    if row is None:
        return None
    study_id = row["id"]
    own_trials = select(trials.c.id).where(trials.c.study_id == study_id)

    def remove(connection: Connection) -> None:
        for table in (evaluations, finalists):
            connection.execute(delete(table).where(table.c.trial_id.in_(own_trials)))
        connection.execute(delete(trials).where(trials.c.study_id == study_id))
        connection.execute(delete(queue).where(queue.c.study_id == study_id))
        connection.execute(delete(studies).where(studies.c.id == study_id))

    db.write(remove)
    return row["artifacts"]  # type: ignore[no-any-return]
