"""Optuna's own storage on the same database; the only part of `store` that imports Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sft_tune.errors import StorageError, StudyExistsError
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
    from optuna.storages import RDBStorage

    storage = RDBStorage(
        db.url,  # Braces, which Optuna would fill in, are percent-encoded by `resolve_url`.
        engine_kwargs=engine_options(db.url),
        skip_table_creation=not make_tables,
        # Done below: when Optuna does it, nobody is left to close its connections.
        skip_compatibility_check=True,
    )
    if storage.get_current_version() != storage.get_head_version():
        storage.engine.dispose()
        raise StorageError(
            f"{redact(db.url)} has Optuna's tables of another version; "
            "upgrade them with `optuna storage upgrade --storage URL`, or upgrade optuna"
        )
    return storage


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
