"""Confirm a study: its leading configurations trained again over fresh seeds, and tested."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence

from sft_tune.errors import StudyNotFoundError
from sft_tune.run.calibrate import is_open
from sft_tune.run.desk import Desk, OneStudy
from sft_tune.run.dispatcher import Dispatcher
from sft_tune.run.engine import Inbox, Worker
from sft_tune.run.events import Notice, Notify, ignore
from sft_tune.run.finalists import FinalistLedger
from sft_tune.run.lanes import Lanes, lanes_of
from sft_tune.run.slots import warm_up
from sft_tune.run.stacking import stack_size
from sft_tune.run.study import make_engine, measured_slots, workers_folder
from sft_tune.spec.config import default_params, finalist_seed
from sft_tune.spec.search import ConfirmSpec
from sft_tune.store import finalists
from sft_tune.store.database import Database
from sft_tune.store.reads import trial_rows
from sft_tune.store.records import StudyRecord
from sft_tune.store.rows import TrialRow


def confirm_study(
    record: StudyRecord,
    db: Database,
    wanted: ConfirmSpec,
    *,
    notify: Notify = ignore,
    on_dispatcher: Callable[[Dispatcher], None] = lambda dispatcher: None,
    ray_address: str | None = None,
) -> str:
    """Train the finalists of the study over fresh seeds; return why it ended.

    That is ``trials`` (every run has ended), stopped or aborted. A confirmation that was stopped,
    or whose runner was killed, goes on where it was; several runners may share one. Every
    finalist has the same seeds, so that they can be compared seed by seed.

    Raises:
        StudyNotFoundError: no trial has completed yet.
        UserError, DataError, ModelError: as of `start_study`.
        TrialError: when too many runs in a row fail.
    """
    spec = record.spec
    numbers = finalists_of(record, trial_rows(db, record.name), wanted.top)
    seeds = [finalist_seed(spec.seed, index) for index in range(wanted.seeds)]
    ids = finalists.ask(db, record.id, numbers, seeds)
    ledger = FinalistLedger(db, record, ids)
    if not ledger.wishes().open:
        return "trials"
    warm_up(spec)
    notify(Notice(f"confirming {_listed(numbers)} over {len(seeds)} seeds each"))
    folder = workers_folder(record.artifacts)
    engine, slots = make_engine(spec.resources, folder, ray_address, notify)
    inbox: Inbox = queue.SimpleQueue()
    idle: list[Worker] = []
    try:
        if is_open(spec.resources):
            slots = measured_slots(record, engine, inbox, idle)
        count = stack_size(record, engine, slots, inbox, idle, most=len(ids))
        if count > 1:
            engine = inbox = Lanes(engine, inbox, idle)
            slots, idle = lanes_of(slots, count), []
        dispatcher = Dispatcher(
            OneStudy(Desk(spec, ledger, notify)),
            engine,
            slots,
            inbox,
            idle,
            spec.resources.grace_seconds,
        )
        on_dispatcher(dispatcher)
        return dispatcher.run()
    finally:
        for worker in idle:
            worker.close()
        engine.close()
        ledger.close(None)


def finalists_of(record: StudyRecord, rows: Sequence[TrialRow], top: int) -> list[int]:
    """Return the numbers of the ``top`` best completed trials, and of the default configuration.

    The default one is what the gain is measured against. It is left out where it has not
    completed: it failed, or the study has not come to it.

    Raises:
        StudyNotFoundError: no trial has completed.
    """
    done = [
        row
        for row in rows
        if row.state == "COMPLETE"
        and row.duplicate_of is None
        and row.value is not None
        and row.config_json is not None
    ]
    if not done:
        raise StudyNotFoundError(
            f"study {record.name!r} has no completed trial to confirm; `sft-tune status "
            f"{record.name}` says how far it is"
        )
    sign = -1 if record.direction == "maximize" else 1
    ranked = sorted(done, key=lambda row: (sign * (row.value or 0.0), row.number))
    default = default_params(record.spec)
    base = [row for row in ranked if dict(row.params) == default]
    chosen = [*ranked[:top], *base[:1]]
    return list(dict.fromkeys(row.number for row in chosen))


def _listed(numbers: Sequence[int]) -> str:
    return "trials " + ", ".join(str(number) for number in numbers)
