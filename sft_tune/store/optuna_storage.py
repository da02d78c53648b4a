"""Optuna's own storage on the same database; the only part of `store` that imports Optuna."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, event, insert
from sqlalchemy.exc import IntegrityError

from sft_tune.errors import StorageError, StudyExistsError
from sft_tune.store import optuna_tables
from sft_tune.store.database import Database, engine_options
from sft_tune.store.names import not_found
from sft_tune.store.urls import redact

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage


def open_optuna_storage(db: Database) -> RDBStorage:
    """Return Optuna's storage on ``db``, opened once; `Database.dispose` closes it.

    Raises:
        StorageError: when the tables are of a version that the installed Optuna cannot use.
    """
    if db.optuna is None:
        db.optuna = _storage(db, make_tables=False)
    return db.optuna


def create_optuna_tables(db: Database) -> None:
    """Make Optuna's tables where they are missing; the caller holds `schema.creation_lock`.

    Raises:
        StorageError: when there are tables of a version that the installed Optuna cannot use.
    """
    db.optuna = _storage(db, make_tables=True)


def _storage(db: Database, *, make_tables: bool) -> RDBStorage:
    from sft_tune.store.optuna_trials import TrialReader

    storage = TrialReader(
        db.url,  # Braces, which Optuna would fill in, are percent-encoded by `resolve_url`.
        engine_kwargs=engine_options(db.url),
        skip_table_creation=not make_tables,
        # Done below: when Optuna does it, nobody is left to close its connections.
        skip_compatibility_check=True,
    )
    if db.backend == "sqlite":
        storage.engine.dispose()  # what was opened so far waits for the disk at each commit
        event.listen(storage.engine, "connect", _sync_with_ours)
    if storage.get_current_version() != storage.get_head_version():
        storage.engine.dispose()
        raise StorageError(
            f"{redact(db.url)} has Optuna's tables of another version; "
            "upgrade them with `optuna storage upgrade --storage URL`, or upgrade optuna"
        )
    return storage


def _sync_with_ours(connection: Any, _record: Any) -> None:
    """Let Optuna's commits not wait for the disk: our next one, in the same log, waits for all.

    A power cut takes from the end of the log only, so what was committed after is gone as well,
    and no end that is noted as told is unknown to Optuna.
    """
    if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
        connection.execute("PRAGMA synchronous = NORMAL")


def set_trial_attributes(
    storage: RDBStorage, optuna_trial_id: int, attributes: Mapping[str, Any]
) -> None:
    """Set user attributes of a trial in one transaction; Optuna takes one, of 3 statements, each.

    Args:
        storage: what `open_optuna_storage` gave.
        optuna_trial_id: the trial, which has not ended.
        attributes: JSON-able values by name.
    """
    table = optuna_tables.trial_user_attributes
    rows = [
        {"trial_id": optuna_trial_id, "key": key, "value_json": json.dumps(value)}
        for key, value in attributes.items()
    ]
    if not rows:
        return
    # When two runners tell one trial at the same moment, they tell the same.
    with contextlib.suppress(IntegrityError), storage.engine.begin() as connection:
        connection.execute(
            delete(table).where(table.c.trial_id == optuna_trial_id, table.c.key.in_([*attributes]))
        )
        connection.execute(insert(table), rows)


def add_reports(storage: RDBStorage, reports: Sequence[tuple[int, int, float]]) -> None:
    """Note in one transaction what running trials report; Optuna takes one for each.

    Args:
        storage: what `open_optuna_storage` gave.
        reports: Optuna's id of the trial, the step and the value, none of them there already.
    """
    table = optuna_tables.trial_intermediate_values
    rows = [
        {"trial_id": trial, "step": step, **optuna_tables.report_columns(value)}
        for trial, step, value in reports
    ]
    if not rows:
        return
    try:
        with storage.engine.begin() as connection:
            connection.execute(insert(table), rows)
    except IntegrityError:  # another runner has brought one of them meanwhile: the same
        for row in rows:
            with contextlib.suppress(IntegrityError), storage.engine.begin() as connection:
                connection.execute(insert(table), [row])


def load_optuna_study(db: Database, name: str) -> Study:
    """Return the study ``name`` as Optuna sees it.

    Raises:
        StudyNotFoundError: Optuna has none of this name; the message names those there are.
    """
    from optuna import get_all_study_names, load_study

    storage = open_optuna_storage(db)
    names = get_all_study_names(storage)
    if name not in names:
        raise not_found(name, names)
    return load_study(study_name=name, storage=storage)


def ensure_optuna_study(storage: RDBStorage, name: str, direction: str, metric_name: str) -> int:
    """Return the id of Optuna's study ``name``, made where it is missing.

    Args:
        storage: what `open_optuna_storage` gave.
        name: name of the study, ours and Optuna's.
        direction: ``maximize`` or ``minimize``.
        metric_name: what Optuna's tools call the value.

    Raises:
        StudyExistsError: when the name differs from another study's in case only, on a database
            that tells no difference (MySQL).
    """
    from optuna.exceptions import DuplicatedStudyError
    from optuna.study import StudyDirection

    try:
        storage.create_new_study([StudyDirection[direction.upper()]], name)
    except DuplicatedStudyError:
        pass  # From an earlier start, or by a runner that was faster: it is the same study.
    study_id = storage.get_study_id_from_name(name)
    found = storage.get_study_name_from_id(study_id)
    if found != name:
        raise same_name_error(found, name)
    # What `Study.set_metric_names` does, which warns that it is experimental.
    storage.set_study_system_attr(study_id, "study:metric_names", [metric_name])
    return study_id


def same_name_error(found: str, name: str) -> StudyExistsError:
    """Return the error for a ``name`` that the database cannot tell from ``found``."""
    return StudyExistsError(
        f"a study named {found!r} is there, and this database takes {name!r} for the same name; "
        "choose another"
    )
