"""How a study comes into the database: checked, registered, or found and continued."""

from __future__ import annotations

import itertools
import math
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy.engine import make_url

from sft_tune.errors import StorageError, StudyExistsError, StudyNotFoundError
from sft_tune.run.engine import Inbox, Worker
from sft_tune.run.single import probe_config
from sft_tune.spec.config import TrialConfig, assemble, default_params
from sft_tune.spec.function_task import is_function
from sft_tune.spec.load import LoadedStudy, differences
from sft_tune.spec.paths import is_url
from sft_tune.spec.study import StudySpec
from sft_tune.store import studies
from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord, find_study
from sft_tune.trial.files import RemoteFiles

LIBRARIES = ("sft_tune", "torch", "torchvision", "transformers", "optuna", "sqlalchemy")


def known_study(db: Database, spec: StudySpec, *, accept_changes: bool) -> StudyRecord | None:
    """Return the study of this name that is in the database, if there is one.

    Raises:
        StudyExistsError: it differs from ``spec`` in what may not change.
    """
    try:
        record = find_study(db, spec.name)
    except StudyNotFoundError:
        return None
    _refuse_changes(record, spec, accept_changes)
    return record


def update(db: Database, record: StudyRecord, loaded: LoadedStudy) -> StudyRecord:
    """Put the study file as it is now in place of the registered one."""
    spec = _as_begun(record, loaded.spec)
    return studies.update_study(
        db, record.id, spec, text=loaded.text, path=str(loaded.path), now=time.time()
    )


def probe_study(spec: StudySpec, worker: Worker, inbox: Inbox) -> dict[str, Any]:
    """Let ``worker`` load data and models and take a step of each; return the facts of the first.

    With them come, as ``costs``, what a step of each model takes, in steps of the quickest: to the
    nearest power of two, so that a study that is begun anew on this machine draws the same trials.
    (Of a head on kept features there is none: the backbone costs once.)

    Raises:
        DataError, ModelError: when data or model are not what the study file says.
    """
    found: list[dict[str, Any]] = []
    costs: dict[str, float | None] = {}
    for config in configs_to_check(spec):
        tokens, size = config.training.batch_tokens, config.training.batch_size
        ways = ([size], []) if tokens is None else ([], [tokens])
        found.append(probe_config(worker, inbox, config, spec.resources, *ways))
        if found[-1].get("features_seconds", 0.0) is None:
            (batch,) = found[-1]["batch_sizes"]
            costs.setdefault(config.model.name, batch["seconds_per_step"])
    return {**found[0], "costs": _in_powers_of_two(costs)}


def _in_powers_of_two(seconds: Mapping[str, float | None]) -> dict[str, float]:
    """Return ``seconds`` in the least of them; where a batch had no room, as the most."""
    known = [each for each in seconds.values() if each]
    return {
        name: 2.0 ** round(math.log2((each or max(known)) / min(known)))
        for name, each in seconds.items()
        if known
    }


def register(
    db: Database, loaded: LoadedStudy, artifacts: str, facts: dict[str, Any] | None
) -> StudyRecord:
    """Write the new study into the database, its files to go to ``artifacts``."""
    return studies.register_study(
        db,
        loaded.spec,
        text=loaded.text,
        path=str(loaded.path),
        root=str(loaded.path.parent),
        versions=library_versions(),
        facts=facts,
        artifacts=artifacts,
        now=time.time(),
    )


def remove_artifacts(artifacts: str) -> None:
    """Remove the folder of a study that was not registered: only a worker's log is in it."""
    if not is_url(artifacts):
        shutil.rmtree(artifacts, ignore_errors=True)


def make_artifacts(spec: StudySpec, url: str) -> str:
    """Make the place of a new study's checkpoints and logs, where `storage.artifacts` says.

    It is named after the study; where a study of another database, or a deleted one, has left a
    folder of this name, a number is added: nobody's checkpoints are taken for another's. (Below
    a URL something random is added: not every filesystem can make a folder only if it is new.)

    Raises:
        StorageError: it cannot be made, or not be written to.
    """
    if spec.storage.artifacts is not None and is_url(spec.storage.artifacts):
        place = f"{spec.storage.artifacts}/{spec.name}-{uuid4().hex[:6]}"
        _check_writable(place)
        return place
    if spec.storage.artifacts is not None:
        base = Path(spec.storage.artifacts)
    else:
        database = make_url(url)
        is_file = database.drivername.startswith("sqlite") and database.database
        base = Path(database.database).parent if is_file and database.database else Path.cwd()
        base = base / "sft_tune_runs"
    folder, count = base.absolute() / spec.name, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return str(folder)
        except FileExistsError:
            count += 1
            folder = folder.with_name(f"{spec.name}-{count}")
        except OSError as error:
            raise StorageError(
                "storage.artifacts: the folder of checkpoints and logs must be one that can be "
                f"made (got {base}: {error.strerror}); give another"
            ) from error


def _check_writable(place: str) -> None:
    """Write a file at the URL ``place`` and remove it.

    Raises:
        StorageError: that cannot be done.
    """
    remote, name = RemoteFiles(place), "writable"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(b"sft_tune")
        try:
            remote.put(file, name)
            remote.remove(name)
        except OSError as error:
            raise StorageError(
                f"storage.artifacts: {error}; make it writable, or give another"
            ) from error


MODELS = ("model.name", "model.weights")
"""What of the space must load and fit."""


def configs_to_check(spec: StudySpec, names: Sequence[str] = MODELS) -> list[TrialConfig]:
    """Return the default configuration, and one for each other value of ``names`` in the space.

    Each model comes with each of its weights, since any of these may be missing.
    """
    points = [default_params(spec)]
    if is_function(spec.task):
        return [assemble(spec, points[0], 0)]
    values = {name: spec.space[name].values or () for name in names if name in spec.space}
    models = [name for name in values if name in MODELS]
    together = itertools.product(*(values[name] for name in models))
    chosen = [
        *(dict(zip(models, of_all, strict=True)) for of_all in together),
        *({name: value} for name in values if name not in MODELS for value in values[name]),
    ]
    for overrides in chosen:
        point = default_params(spec, overrides)
        if point not in points:
            points.append(point)
    return [assemble(spec, point, 0) for point in points]


def library_versions() -> dict[str, str]:
    """Return the versions of what decides a trial's numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def _as_begun(record: StudyRecord, spec: StudySpec) -> StudySpec:
    """Return ``spec`` with the rungs that its trials have, where it leaves their number to us.

    Studies from before it could had ten.
    """
    if spec.objective.rungs != "auto":
        return spec
    rungs = {"rungs": record.spec.objective.rungs}
    return spec.model_copy(update={"objective": spec.objective.model_copy(update=rungs)})


def _refuse_changes(record: StudyRecord, spec: StudySpec, accept_changes: bool) -> None:
    never, on_request = differences(record.spec, _as_begun(record, spec))
    other = "give the file another `name`"
    if is_function(spec.task):
        other = "give the study another name (`tune(..., name=...)`, in a study file `name`)"
    if never:
        raise StudyExistsError(
            f"study {spec.name!r} is in the database with other content, and these may not "
            "change:\n  " + "\n  ".join(never) + f"\n{other[0].upper()}{other[1:]}, or "
            f"`sft-tune delete {spec.name}` first."
        )
    if on_request and not accept_changes:
        raise StudyExistsError(
            f"the file of study {spec.name!r} differs from the database's:\n  "
            + "\n  ".join(on_request)
            + f"\nGo on with the new values by --accept-changes, or {other}."
        )
