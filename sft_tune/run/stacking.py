"""How many trials of a study train as one stack on each slot: asked for, or measured."""

from __future__ import annotations

from collections.abc import Sequence

from sft_tune.run import messages
from sft_tune.run.engine import GONE, Engine, Inbox, Worker
from sft_tune.run.register import configs_to_check
from sft_tune.run.retention import prepared_place
from sft_tune.run.slots import Slot
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.paths import localize_config
from sft_tune.spec.stacking import trains_models, why_alone
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

LARGE = 0.05
"""Seconds of a step on the CPU whose kernels fill it: a stack of such models was never faster."""


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
    if asked == "off" or why_alone(record.spec) is not None:
        return 1
    if asked != "auto":
        return asked
    at_once = _at_once(record.spec) if most is None else min(most, AT_ONCE_UNTOLD)
    count = max(2, at_once // len(slots))
    config = localize_config(configs_to_check(record.spec)[0], record.root or "")
    left = _left(record) if most is None else most
    if trains_models(config) and ((left is not None and left < 2) or _fills_cpu(record, slots)):
        return 1
    if not idle:
        idle.append(engine.spawn(slots[0], inbox))
    worker = idle[0]
    resources, prepared = record.spec.resources, prepared_place(record.artifacts)
    # A larger stack gains no less.
    sizes = _batch_sizes(record.spec, config, min(count, AT_ONCE))
    worker.send(messages.measure_stack(config, sizes, left, slots[0], resources, prepared))
    beside = sum(slot.gpu == slots[0].gpu for slot in slots)
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


def _fills_cpu(record: StudyRecord, slots: Sequence[Slot]) -> bool:
    """Tell whether the step that the study was checked with says so; then nothing is measured."""
    checked = record.facts.get("batch_sizes") or [{}]
    return slots[0].gpu is None and (checked[0].get("seconds_per_step") or 0.0) > LARGE


def _batch_sizes(spec: StudySpec, config: TrialConfig, count: int) -> list[int]:
    """Return the batch sizes of ``count`` trials, spread over the space, equal ones side by side.

    A batch takes longer the larger it is, and a stack as long as for its largest.
    """
    parameter = spec.space.get("batch_size")
    if parameter is None:
        return [config.training.batch_size] * count
    if parameter.values is None:
        parameter = parameter.model_copy(update={"points": count, "step": None})
    values = parameter.grid_values()
    sizes = sorted(int(value) for value in values if isinstance(value, int | float))
    return [sizes[k * len(sizes) // count] for k in range(count)]


def _left(record: StudyRecord) -> int | None:
    """Return how many trials the budget has left to begin; None: it does not count them."""
    return None if record.max_trials is None else record.max_trials - record.issued


def _at_once(spec: StudySpec) -> int:
    learns = spec.sampler.name not in UNTOLD or spec.pruner.name != "none"
    most = AT_ONCE if learns else AT_ONCE_UNTOLD
    return min(most, spec.budget.trials or most)
