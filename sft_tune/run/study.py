"""Start a study, from its file to its end: check, register or continue, dispatch."""

from __future__ import annotations

import platform
import queue
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from sft_tune.errors import StorageError, StudyExistsError, StudyNotFoundError
from sft_tune.run.dispatcher import Dispatcher
from sft_tune.run.engine import Inbox, LocalEngine, Worker
from sft_tune.run.events import Notice, Notify, ignore
from sft_tune.run.ledger import Ledger
from sft_tune.run.searcher import Searcher
from sft_tune.run.single import probe_config
from sft_tune.run.slots import find_slots
from sft_tune.spec.config import TrialConfig, assemble, default_params
from sft_tune.spec.load import LoadedStudy, differences
from sft_tune.spec.plan import make_plan
from sft_tune.spec.study import StudySpec
from sft_tune.store import claims, studies
from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import open_optuna_storage
from sft_tune.store.records import StudyRecord, find_study

LIBRARIES = ("sft_tune", "torch", "torchvision", "transformers", "optuna", "sqlalchemy")


@dataclass(frozen=True)
class Ended:
    """How `start_study` ended.

    Attributes:
        why: trials, hours, target (the budget's word); stopped or aborted; finished (nothing was
            left to do); elsewhere (other runners have all that is left).
        continued: whether the study was in the database before.
    """

    why: str
    continued: bool


def make_artifacts_folder(spec: StudySpec, url: str) -> Path:
    """Make the folder of a new study's checkpoints and logs, where `storage.artifacts` says.

    It is named after the study; where a study of another database, or a deleted one, has left a
    folder of this name, a number is added: nobody's checkpoints are taken for another's.
    """
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
            return folder
        except FileExistsError:
            count += 1
            folder = folder.with_name(f"{spec.name}-{count}")
        except OSError as error:
            raise StorageError(
                f"the folder of checkpoints and logs cannot be made: {error}; give another as "
                "storage.artifacts"
            ) from error


def start_study(
    loaded: LoadedStudy,
    db: Database,
    *,
    notify: Notify = ignore,
    accept_changes: bool = False,
    on_dispatcher: Callable[[Dispatcher], None] = lambda dispatcher: None,
) -> Ended:
    """Run the study of ``loaded`` in ``db``: from its start, or on from where it stands.

    Args:
        loaded: the study file.
        db: the study database, tables made.
        notify: is told what happens.
        accept_changes: continue although sampler, pruner or space differ from the database's.
        on_dispatcher: is given the dispatcher before it runs, to stop it by.

    Raises:
        StudyExistsError: when the study in the database differs in what may not change.
        DataError, ModelError: when data or model are not what the study file says.
        TrialError: when too many trials in a row fail.
    """
    spec = loaded.spec
    slots = find_slots(spec.resources)
    record = _find(db, spec.name)
    if record is not None:
        _refuse_changes(record, spec, accept_changes)
    folder = make_artifacts_folder(spec, db.url) if record is None else Path(record.artifacts)
    engine = LocalEngine(folder / "workers")
    inbox: Inbox = queue.SimpleQueue()
    idle: list[Worker] = []
    if record is None:
        notify(Notice("checking data and model"))
        idle.append(engine.spawn(slots[0], inbox))
        try:
            facts = [
                probe_config(idle[0], inbox, config, [config.training.batch_size])
                for config in configs_to_check(spec)
            ]
        except BaseException:
            idle[0].close()
            shutil.rmtree(folder, ignore_errors=True)  # nothing but the worker's log is in it
            raise
        record = _register(db, loaded, folder, facts[0])
        continued = False
    else:
        record = studies.update_study(
            db, record.id, spec, text=loaded.text, path=str(loaded.path), now=time.time()
        )
        continued = True
    plan = make_plan(spec)
    searcher = Searcher(spec, plan, open_optuna_storage(db))
    ledger = Ledger(db, record, spec, plan, searcher, folder)
    dispatcher = Dispatcher(spec, ledger, engine, slots, inbox, notify, idle)
    on_dispatcher(dispatcher)
    why = dispatcher.run()
    if why in ("stopped", "aborted") or dispatcher.placed or not continued:
        return Ended(why, continued)
    elsewhere = claims.live_owners(db, record.id, time.time())
    return Ended("elsewhere" if elsewhere else "finished", continued)


def configs_to_check(spec: StudySpec) -> list[TrialConfig]:
    """Return the default configuration, and one for each other model or weights of the space."""
    points = [default_params(spec)]
    for name in ("model.name", "model.weights"):
        for value in spec.space[name].values or () if name in spec.space else ():
            point = default_params(spec, {name: value})
            if point not in points:
                points.append(point)
    return [assemble(spec, point, 0) for point in points]


def library_versions() -> dict[str, str]:
    """Return the versions of what decides a trial's numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def _find(db: Database, name: str) -> StudyRecord | None:
    try:
        return find_study(db, name)
    except StudyNotFoundError:
        return None


def _register(
    db: Database, loaded: LoadedStudy, folder: Path, facts: dict[str, Any]
) -> StudyRecord:
    return studies.register_study(
        db,
        loaded.spec,
        text=loaded.text,
        path=str(loaded.path),
        root=str(loaded.path.parent),
        versions=library_versions(),
        facts=facts,
        artifacts=str(folder),
        now=time.time(),
    )


def _refuse_changes(record: StudyRecord, spec: StudySpec, accept_changes: bool) -> None:
    never, on_request = differences(record.spec, spec)
    if never:
        raise StudyExistsError(
            f"study {spec.name!r} is in the database with other content, and these may not "
            "change:\n  " + "\n  ".join(never) + "\nGive the file another `name`, or "
            f"`sft-tune delete {spec.name}` first."
        )
    if on_request and not accept_changes:
        raise StudyExistsError(
            f"the file of study {spec.name!r} differs from the database's:\n  "
            + "\n  ".join(on_request)
            + "\nGo on with the new values by --accept-changes, or give the file another `name`."
        )
