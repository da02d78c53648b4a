"""Settings that are valid one by one and make no sense together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from sft_tune.spec.documents import Place
from sft_tune.spec.findings import Findings
from sft_tune.spec.function_task import NONE, is_function
from sft_tune.spec.objective import MOST_RUNGS
from sft_tune.spec.paths import is_weights_path
from sft_tune.spec.plan import has_costs
from sft_tune.spec.rules import Finding, Rule, combinations, known_combinations, place_of, places_of
from sft_tune.spec.space_rules import check_space
from sft_tune.spec.stacking import why_alone
from sft_tune.spec.study import StudySpec
from sft_tune.spec.task_rules import TASK_RULES
from sft_tune.spec.tasks import MULTI_LABEL, TASKS, Metric
from sft_tune.spec.techniques import TECHNIQUE_RULES
from sft_tune.spec.wording import near, shown

_PRUNER_KEYS = {
    "reduction": ("asha", "hyperband"),
    "percentile": ("percentile",),
    "startup_trials": ("asha", "hyperband", "median", "percentile"),
    "p_threshold": ("wilcoxon",),
}


def check(spec: StudySpec, findings: Findings) -> StudySpec:
    """Report every contradiction in ``spec``; return it with the usable part of its space.

    Rules whose settings have problems of their own are skipped: a guess would mislead.
    """
    spec = check_space(spec, findings)
    for rule in _RULES_OF_FUNCTIONS if is_function(spec.task) else _RULES:
        for place, text in rule(spec, findings):
            findings.add(place, text)
    return spec


def _weights_of_model(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    for cell in known_combinations(spec, findings, "model.name", "model.weights"):
        name, weights = str(cell["model.name"]), str(cell["model.weights"])
        if is_weights_path(weights) or weights == "none":
            continue
        place = place_of(spec, "model.weights")
        if name.startswith("builtin:"):
            yield place, f"{name} has no published weights {weights}; give a file, or none"
            return
        if name.startswith("transformers:") and weights != "DEFAULT":
            yield place, f"{name} has the weights DEFAULT or none, or those of a file"
            return


def _frozen_random_weights(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    for cell in known_combinations(spec, findings, "freeze", "model.weights"):
        if cell["freeze"] in ("backbone", "blocks") and cell["model.weights"] == "none":
            yield (
                place_of(spec, "freeze"),
                f"freeze: {cell['freeze']} with model.weights: none keeps random weights for ever; "
                "change one, or keep them apart with `when`",
            )
            return


def _head_rate_of_frozen(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    names = ["freeze", "head_multiplier"]
    if "head_multiplier" not in spec.space or not findings.ok(*places_of(*names)):
        return
    if all(cell["freeze"] == "backbone" for cell in combinations(spec, names)):
        yield (
            ("space", "head_multiplier"),
            "with freeze: backbone only the head is trained, so learning_rate sets its rate "
            "alone; search that",
        )


def _splits(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    data = spec.data
    ok = findings.ok
    if data.validation and findings.has(("data", "validation_fraction")):
        yield (
            ("data", "validation_fraction"),
            "data.validation is given, so this is unused; remove it",
        )
    if data.fold is not None and ok(("data", "fold"), ("data", "folds")):
        if data.folds is None:
            yield ("data", "fold"), "is one of data.folds, which is not given; give it"
        elif data.fold >= data.folds:
            yield ("data", "fold"), f"must be below data.folds, {data.folds}; they count from 0"
    for key in ("validation", "validation_fraction"):
        if data.folds is not None and findings.has(("data", key)):
            yield ("data", key), "unused: data.folds takes validation from train; remove it"
    if data.test and data.test_fraction > 0:
        yield ("data", "test_fraction"), "data.test is given, so this is unused; remove it"
    if data.folds is None and data.validation_fraction + data.test_fraction >= 1 and ok(("data",)):
        yield (
            ("data", "test_fraction"),
            f"with validation_fraction {shown(data.validation_fraction)} nothing remains to "
            "train on; their sum must be below 1",
        )
    given = [(key, getattr(data, key)) for key in ("train", "validation", "test")]
    for index, (key, value) in enumerate(given):
        same = [other for other, earlier in given[:index] if value and earlier == value]
        if same:
            yield ("data", key), f"is the same as data.{same[0]}; scores on seen data mean nothing"


def _data_details(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    data = spec.data
    if data.normalize and findings.ok(("data", "normalize")):
        lengths = len(data.normalize.mean), len(data.normalize.std)
        if lengths[0] != lengths[1] or lengths[0] not in (1, 3):
            yield (
                ("data", "normalize"),
                f"mean and std need 1 or 3 values each (a value per channel), not "
                f"{lengths[0]} and {lengths[1]}",
            )
    if data.classes is not None:
        if len(set(data.classes)) < len(data.classes):
            yield ("data", "classes"), "names a label twice; remove one"
        elif len(data.classes) < 2:
            yield ("data", "classes"), "a classification needs two labels or more; add some"
    if data.subset and findings.ok(("data", "source")) and not data.source.startswith("hub:"):
        yield ("data", "subset"), "only hub: sources have subsets; remove it"


def _function_task(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    stand_ins = {"data": spec.data.source, "model": spec.model.name}
    for section in ("data", "model", "training"):
        if findings.has((section,)) and stand_ins.get(section) != NONE:
            yield (section,), "a training function of yours reads `arguments` alone; remove this"
    if findings.has(("objective", "evaluate")):
        yield (
            ("objective", "evaluate"),
            "a training function of yours measures itself; remove it",
        )
    if spec.objective.metric == "auto" and findings.ok(("objective", "metric")):
        yield ("objective", "metric"), "must name one of the metrics that your function reports"
    elif spec.objective.direction == "auto" and findings.ok(("objective", "direction")):
        yield (
            ("objective", "direction"),
            f"must say whether {spec.objective.metric} is to be maximized or minimized; a "
            "training function of yours may report anything",
        )


def _no_arguments(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    if spec.arguments:
        yield ("arguments",), f"are for training functions of yours, not {spec.task}; remove them"


def _metric_of_task(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    known: tuple[str, ...] = get_args(Metric)
    if findings.ok(("objective", "metric")) and spec.objective.metric not in known:
        if findings.ok(("task",)):
            known = ("auto", *(MULTI_LABEL if spec.data.multi_label else TASKS[spec.task].metrics))
        guess = near(spec.objective.metric, known)
        remedy = f"; did you mean {guess}?" if guess else ""
        yield ("objective", "metric"), f"must be one of {', '.join(known)}{remedy}"


def _pruner(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    pruner = spec.pruner
    if not findings.ok(("pruner", "name")) or pruner.name == "none":
        return
    for key, users in _PRUNER_KEYS.items():
        if findings.has(("pruner", key)) and pruner.name not in users:
            yield (
                ("pruner", key),
                f"is read only by {' and '.join(users)}, not {pruner.name}; remove it, or "
                f"set `name: {users[0]}`",
            )
    if pruner.name == "wilcoxon" and (spec.data.folds is None or spec.data.fold is not None):
        yield (
            ("pruner", "name"),
            "wilcoxon compares trials fold by fold; give data.folds, or choose another",
        )
        return
    # The last rung is the end of the trial, where there is nothing left to save.
    key, rungs = "objective.rungs", spec.objective.rungs
    if rungs == "auto":
        rungs = MOST_RUNGS
    if spec.data.folds is not None and spec.data.fold is None:
        key, rungs = "data.folds", spec.data.folds
    asked = findings.has(("pruner", "name")) or findings.has(("pruner", "first"))
    if asked and findings.ok(("objective", "rungs"), ("pruner", "first")):
        if rungs == 1 or pruner.first > 100 * (rungs - 1) / rungs:
            place: Place = ("pruner", "first" if findings.has(("pruner", "first")) else "name")
            yield (
                place,
                f"nothing can be pruned: {key} is {rungs}, and no rung before the end has the "
                f"progress of {pruner.first} %; raise {key.partition('.')[2]}, or set `name: none`",
            )


def _cost_aware(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    if spec.sampler.cost_aware is not True:
        return
    if spec.sampler.name != "tpe" and findings.ok(("sampler", "name")):
        yield (
            ("sampler", "cost_aware"),
            f"is read only by tpe, not {spec.sampler.name}; remove it, or set `name: tpe`",
        )
    elif findings.ok(("space",)) and not has_costs(spec):
        yield (
            ("sampler", "cost_aware"),
            "counts cost in epochs and models, and the space holds neither a `model.name` nor "
            "numbers of epochs above 0; remove it, or search one of these",
        )


def _devices(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    devices = spec.resources.devices
    if isinstance(devices, tuple) and len(set(devices)) < len(devices):
        yield (
            ("resources", "devices"),
            "names a GPU twice; remove one, or set trials_per_device for more trials on each",
        )


def _queue_fits(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    trials, queued = spec.budget.trials, len(spec.sampler.enqueue)
    if trials is not None and queued and trials < queued + 1:
        yield (
            ("budget", "trials"),
            f"must hold the default configuration and the {queued} of sampler.enqueue; "
            f"write {queued + 1} or more",
        )


def _stack(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    """An explicit number of trials that train as one is for those that may.

    It looks at all settings: where one has a problem of its own it says nothing.
    """
    if isinstance(spec.resources.stack, int) and not findings.broken:
        reason = why_alone(spec)
        if reason is not None:
            yield ("resources", "stack"), f"trials of this study cannot train as one: {reason}"


_RULES: tuple[Rule, ...] = (
    _metric_of_task,
    _no_arguments,
    *TASK_RULES,
    _weights_of_model,
    _frozen_random_weights,
    _head_rate_of_frozen,
    *TECHNIQUE_RULES,
    _splits,
    _data_details,
    _pruner,
    _cost_aware,
    _devices,
    _queue_fits,
    _stack,
)
_RULES_OF_FUNCTIONS: tuple[Rule, ...] = (
    _function_task,
    _pruner,
    _cost_aware,
    _devices,
    _queue_fits,
    _stack,
)
