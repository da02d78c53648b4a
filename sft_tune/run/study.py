"""Start a study, from its file to its end: check, register or continue, dispatch."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sft_tune.errors import UserError
from sft_tune.run.calibrate import best_cpu_workers, is_open
from sft_tune.run.desk import Desk, OneStudy
from sft_tune.run.dispatcher import Dispatcher
from sft_tune.run.engine import Engine, Inbox, LocalEngine, Worker
from sft_tune.run.events import Notice, Notify, ignore
from sft_tune.run.lanes import Lanes, lanes_of
from sft_tune.run.ledger import Ledger
from sft_tune.run.messages import cache_folder
from sft_tune.run.register import (
    configs_to_check,
    known_study,
    make_artifacts,
    probe_study,
    register,
    remove_artifacts,
    update,
)
from sft_tune.run.retention import working_folder
from sft_tune.run.searcher import Searcher
from sft_tune.run.slots import Slot, find_slots, unused_gpus
from sft_tune.run.stacking import STACKED, stack_size
from sft_tune.spec.advice import idle_batch_sizes
from sft_tune.spec.evaluating import evaluation_epochs
from sft_tune.spec.function_task import is_function
from sft_tune.spec.load import LoadedStudy
from sft_tune.spec.paths import localize_config
from sft_tune.spec.plan import make_plan, weighs_cost
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.store import control
from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import open_optuna_storage
from sft_tune.store.records import StudyRecord

WEIGHED = "from here on trials are chosen by what they promise for their cost (sampler.cost_aware)"
NOT_WEIGHED = "from here on what a trial costs does not matter to the search (sampler.cost_aware)"
"""What is told where a changed budget changes that, with `auto`."""


@dataclass(frozen=True)
class Ended:
    """How `start_study` ended.

    Attributes:
        why: trials, hours, target (the budget's word); stopped or aborted; finished (nothing was
            left to do).
        continued: whether the study was in the database before.
    """

    why: str
    continued: bool


def start_study(
    loaded: LoadedStudy,
    db: Database,
    *,
    notify: Notify = ignore,
    accept_changes: bool = False,
    on_dispatcher: Callable[[Dispatcher], None] = lambda dispatcher: None,
    ray_address: str | None = None,
) -> Ended:
    """Run the study of ``loaded`` in ``db``: from its start, or on from where it stands.

    Args:
        loaded: the study file.
        db: the study database, tables made.
        notify: is told what happens.
        accept_changes: continue although sampler, pruner or space differ from the database's.
        on_dispatcher: is given the dispatcher before it runs, to stop it by.
        ray_address: the cluster that `resources.engine: ray` joins; None: a local one.

    Raises:
        StudyExistsError: when the study in the database differs in what may not change.
        DataError, ModelError: when data or model are not what the study file says.
        TrialError: when too many trials in a row fail.
    """
    spec = loaded.spec
    known = known_study(db, spec, accept_changes=accept_changes)
    artifacts = make_artifacts(spec, db.url) if known is None else known.artifacts
    try:
        folder = workers_folder(artifacts)
        engine, slots = make_engine(spec.resources, folder, ray_address, notify)
    except BaseException:
        if known is None:
            remove_artifacts(artifacts)
        raise
    inbox: Inbox = queue.SimpleQueue()
    idle: list[Worker] = []
    try:
        if known is None:
            slot = slots[0]
            record = _check_and_register(loaded, db, artifacts, engine, slot, inbox, idle, notify)
        else:
            record = update(db, known, loaded)
            if weighs_cost(spec) != weighs_cost(known.spec):
                notify(Notice(WEIGHED if weighs_cost(spec) else NOT_WEIGHED))
        if is_open(spec.resources) and not is_function(spec.task):
            slots = measured_slots(record, engine, inbox, idle)
        count = stack_size(record, engine, slots, inbox, idle)
        desk = Desk(record.spec, make_ledger(db, record), notify)
        desk.ledger.want(None)
        desk.ledger.recover()
    except BaseException:
        for worker in idle:
            worker.close()
        engine.close()
        raise
    if count > 1:
        notify(Notice(STACKED.format(count=count)))
        engine = inbox = Lanes(engine, inbox, idle)
        slots, idle = lanes_of(slots, count), []
    dispatcher = Dispatcher(
        OneStudy(desk), engine, slots, inbox, idle, spec.resources.grace_seconds
    )
    on_dispatcher(dispatcher)
    try:
        why = dispatcher.run()
    finally:
        engine.close()
    stopped = why in ("stopped", "aborted")
    desk.ledger.close(None if stopped else why)
    nothing_to_do = known is not None and not desk.placed and not stopped
    return Ended("finished" if nothing_to_do else why, continued=known is not None)


def make_engine(
    resources: ResourcesSpec, logs: Path, ray_address: str | None, notify: Notify
) -> tuple[Engine, list[Slot]]:
    """Return the engine that ``resources`` names, and the slots it has.

    Raises:
        UserError: Ray is not installed or does not answer; a device is not there.
    """
    if resources.engine == "local":
        if ray_address is not None:
            raise UserError(
                f"--ray-address needs `resources.engine: ray` (got {resources.engine}); change "
                "that in the study file, or leave the option out"
            )
        if text := unused_gpus(resources):
            notify(Notice(text))
        return LocalEngine(logs), find_slots(resources)
    from sft_tune.run.ray_engine import RayEngine

    engine = RayEngine(resources, ray_address)
    return engine, engine.find_slots()


def submit_study(
    loaded: LoadedStudy,
    db: Database,
    *,
    notify: Notify = ignore,
    accept_changes: bool = False,
    check: bool = True,
    priority: int | None = None,
) -> bool:
    """Register the study of ``loaded``, for workers to serve; return whether it was there before.

    Args:
        loaded: the study file.
        db: the study database, tables made.
        notify: is told what happens.
        accept_changes: take the file although sampler, pruner or space differ.
        check: load data and models here first; without it, workers find out.
        priority: see `control.set_priority`; None: as it is.

    Raises:
        StudyExistsError: when the study in the database differs in what may not change.
        DataError, ModelError: when data or model are not what the study file says.
    """
    spec = loaded.spec
    known = known_study(db, spec, accept_changes=accept_changes)
    if known is not None:
        record = update(db, known, loaded)
    else:
        place = make_artifacts(spec, db.url)
        if check:
            engine, idle = LocalEngine(workers_folder(place)), list[Worker]()
            inbox: Inbox = queue.SimpleQueue()
            slot = find_slots(spec.resources)[0]
            try:
                record = _check_and_register(loaded, db, place, engine, slot, inbox, idle, notify)
            finally:
                for worker in idle:
                    worker.close()
        else:
            record = register(db, loaded, place, None)
    if priority is not None:
        control.set_priority(db, record.id, priority)
    control.want(db, record.id, None)
    return known is not None


def make_ledger(db: Database, record: StudyRecord) -> Ledger:
    """Return the database side of a runner of the study ``record``."""
    plan = make_plan(record.spec)
    examples = record.facts.get("examples")  # of a study that nobody has checked, none are known
    fixed_cost = evaluation_epochs(record.spec, examples) if examples else 0.0
    costs = record.facts.get("costs")
    searcher = Searcher(record.spec, plan, open_optuna_storage(db), fixed_cost, costs)
    return Ledger(db, record, record.spec, plan, searcher, record.artifacts)


def workers_folder(artifacts: str) -> Path:
    """Return the folder, of this machine, of what workers print between trials."""
    return working_folder(artifacts, cache_folder()) / "workers"


def _check_and_register(
    loaded: LoadedStudy,
    db: Database,
    artifacts: str,
    engine: Engine,
    slot: Slot,
    inbox: Inbox,
    idle: list[Worker],
    notify: Notify,
) -> StudyRecord:
    """Register the study after a worker, which is added to ``idle``, has found it sound."""
    try:
        notify(Notice("checking data and model"))
        idle.append(engine.spawn(slot, inbox))
        facts = probe_study(loaded.spec, idle[0], inbox)
    except BaseException:
        for worker in idle:
            worker.close()
        idle.clear()
        remove_artifacts(artifacts)
        raise
    if not is_function(loaded.spec.task):
        if text := idle_batch_sizes(loaded.spec, facts["examples"]["train"]):
            notify(Notice(text))
    return register(db, loaded, artifacts, facts)


def measured_slots(
    record: StudyRecord,
    engine: Engine,
    inbox: Inbox,
    idle: list[Worker],
    resources: ResourcesSpec | None = None,
) -> list[Slot]:
    """Return as many slots on the CPU as are fastest; ``idle`` workers move to the first ones.

    ``resources`` are what is given of this machine; None: what the study says.
    """
    resources = resources or record.spec.resources
    config = localize_config(configs_to_check(record.spec)[0], record.root or "")
    count = best_cpu_workers(record, config, resources, engine, inbox, idle)
    slots = find_slots(resources, count)
    for worker in idle[count:]:
        worker.close()
    del idle[count:]
    for worker, slot in zip(idle, slots, strict=False):
        worker.slot = slot
    return slots
