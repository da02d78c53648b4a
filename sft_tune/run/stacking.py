"""How many trials of a study train as one stack on each slot: asked for, or measured."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

from sft_tune.run import messages
from sft_tune.run.engine import GONE, Engine, Inbox, Worker
from sft_tune.run.register import configs_to_check
from sft_tune.run.retention import prepared_place
from sft_tune.run.slots import Slot
from sft_tune.spec.paths import localize_config
from sft_tune.spec.stacking import stacks, trains_models
from sft_tune.spec.study import StudySpec
from sft_tune.store.records import StudyRecord

AT_ONCE = 8
"""Trials at once over all slots: with more the search knows less when it asks."""

AT_ONCE_UNTOLD = 32
"""The same where the search learns nothing from trials: as many as the processor's caches hold."""

UNTOLD = ("random", "qmc", "grid")
"""Samplers that propose the same whatever is known."""

STACKED = "{count} trials at a time train as one stack on each slot"
"""What is told where they do."""

WORTH = 1.2
TRIAL_BYTES = 2**28
"""What a trial in a stack is allowed for; it takes far less where its backbone is shared. Models
are measured, too."""


def stack_size(
    record: StudyRecord,
    engine: Engine,
    slots: Sequence[Slot],
    inbox: Inbox,
    idle: list[Worker],
    most: int | None = None,
) -> int:
    """Return how many trials are to train as one on each of ``slots``; 1: each trains alone.

    Args:
        record: the study.
        engine: makes a worker to measure with, where there is none.
        slots: of the study.
        inbox: where the worker answers.
        idle: the workers there are; one that was made is added.
        most: trials there are, all known from the start; None: those that the search proposes.
    """
    asked = record.spec.resources.stack
    if asked == "off" or not stacks(record.spec):
        return 1
    if asked != "auto":
        return asked
    fit = int(psutil.virtual_memory().available // TRIAL_BYTES)
    at_once = _at_once(record.spec) if most is None else min(most, AT_ONCE_UNTOLD)
    count = min(max(2, at_once // len(slots)), fit // len(slots))
    config = localize_config(configs_to_check(record.spec)[0], record.root or "")
    left = _left(record) if most is None else most
    if count < 2 or (trains_models(config) and left is not None and left < 2):
        return 1
    if not idle:
        idle.append(engine.spawn(slots[0], inbox))
    worker = idle[0]
    resources, prepared = record.spec.resources, prepared_place(record.artifacts)
    # A larger stack gains no less.
    tried = min(count, AT_ONCE)
    worker.send(messages.measure_stack(config, tried, left, slots[0], resources, prepared))
    beside = sum(slot.device == slots[0].device for slot in slots)
    while True:
        sender, message = inbox.get()
        if sender not in (None, worker):
            continue  # the last word of one that was closed
        if sender is None or message["event"] == "error":
            return 1  # a signal's: the dispatcher will see that it is to stop
        if message["event"] == GONE:
            idle.remove(worker)
            return 1
        if message["event"] == "measured":
            if message["most"] is not None:
                count = min(count, message["most"] // beside)
            return count if message["gain"] >= WORTH and count > 1 else 1


def _left(record: StudyRecord) -> int | None:
    """Return how many trials the budget has left to begin; None: it does not count them."""
    return None if record.max_trials is None else record.max_trials - record.issued


def _at_once(spec: StudySpec) -> int:
    learns = spec.sampler.name not in UNTOLD or spec.pruner.name != "none"
    most = AT_ONCE if learns else AT_ONCE_UNTOLD
    return min(most, spec.budget.trials or most)
