"""Studies that another program made with Optuna, copied into our database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from sft_tune.errors import StorageError, StudyExistsError, UserError
from sft_tune.store.attributes import STUDY
from sft_tune.store.names import not_found
from sft_tune.store.optuna_storage import open_optuna_storage
from sft_tune.store.urls import redact, resolve_url, scrub

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage

    from sft_tune.store.database import Database


def import_study(
    db: Database, name: str, source: str, *, as_name: str | None = None, metric: str | None = None
) -> tuple[str, int]:
    """Copy the study ``name`` of another database of Optuna's; the other one stays as it is.

    Args:
        db: where to.
        name: the study's, there.
        source: URL or ``.db`` file of the other database.
        as_name: the study's name here; None: the same.
        metric: what its value is called; None: what Optuna knows it by, else ``value``.

    Returns:
        The name of its value, and the number of its trials.

    Raises:
        UserError: the study has several objectives.
        StudyNotFoundError: there is no such study; the message names those there are.
        StudyExistsError: there is one of the name here.
        StorageError: the other database is missing, is ours, or cannot be read.
    """
    from optuna import copy_study, delete_study, get_all_study_names, load_study

    url = resolve_url(source)
    if url == db.url:
        raise StorageError(
            f"--from is the database itself ({redact(url)}): its studies need no import"
        )
    new = as_name or name
    ours = open_optuna_storage(db)
    if new in get_all_study_names(ours):
        raise StudyExistsError(f"a study named {new!r} is there; give another name with --as")
    theirs = _open(url)
    try:
        names = get_all_study_names(theirs)
        if name not in names:
            raise not_found(name, names)
        found = load_study(study_name=name, storage=theirs)
        if len(found.directions) != 1:
            raise UserError(
                f"study {name!r} has {len(found.directions)} objectives; one with a single "
                "objective can be imported"
            )
        told = metric or _metric(found)
        try:
            copy_study(
                from_study_name=name, from_storage=theirs, to_storage=ours, to_study_name=new
            )
            study = load_study(study_name=new, storage=ours)
            study.set_user_attr(STUDY, {"name": new, "metric": told})
        except BaseException:
            # Half a study would look like a whole one.
            if new in get_all_study_names(ours):
                delete_study(study_name=new, storage=ours)
            raise
        return told, len(study.get_trials(deepcopy=False))
    finally:
        theirs.engine.dispose()


def _metric(study: Study) -> str:
    kept = study.user_attrs.get(STUDY)  # Of a study that was once ours.
    if isinstance(kept, dict) and kept.get("metric"):
        return str(kept["metric"])
    names = study.metric_names
    return names[0] if names else "value"


def _open(url: str) -> RDBStorage:
    """Return Optuna's storage on ``url``, which must have its tables already."""
    from optuna.storages import RDBStorage

    parsed = make_url(url)
    file = parsed.database or ""
    if parsed.get_backend_name() == "sqlite" and not Path(file).is_file():
        raise StorageError(f"--from: no database at {redact(url)}")
    try:
        # Version checks and all; but nothing is made in a database that is not ours.
        return RDBStorage(url, skip_table_creation=True)
    except Exception as error:
        why = scrub(str(error), url).strip().split("\n")[0]
        raise StorageError(
            f"--from: {redact(url)} cannot be read as a database of Optuna's ({why}); "
            "`optuna storage upgrade` brings one of an older Optuna up to date"
        ) from None
