"""What the task forbids: data, models, training and metrics that do not fit it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sft_tune.spec.data import DataSpec
from sft_tune.spec.findings import Findings
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.objective import ObjectiveSpec
from sft_tune.spec.rules import Finding, Rule, combinations, known_combinations, place_of, places_of
from sft_tune.spec.study import StudySpec
from sft_tune.spec.tasks import (
    CLASS_TECHNIQUES,
    DATA_OF_SOME,
    METRICS,
    MULTI_LABEL,
    TASKS,
    TRAINING_OF_SOME,
    WRITTEN,
    resolve_metric,
)
from sft_tune.spec.training import TrainingSpec
from sft_tune.spec.wording import near, shown

_IMAGE_SOURCES = ("torchvision:", "sklearn:")


def _data(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    facts, data = TASKS[spec.task], spec.data
    images = facts.input == "image"
    if not images and data.source.startswith(_IMAGE_SOURCES) and findings.ok(("data", "source")):
        yield ("data", "source"), f"holds images, but the task is {spec.task}; change one of them"
    if (facts.masks or facts.boxes) and data.source.startswith((*_IMAGE_SOURCES, "hub:")):
        if findings.ok(("data", "source")):
            has = "masks; give a folder of images and masks, or python:"
            if facts.boxes:
                has = "boxes; give COCO's annotations, JSON lines, or python:"
            yield ("data", "source"), f"has no {has}"
    for key in sorted(DATA_OF_SOME - {*facts.columns, *facts.data}):
        if findings.ok(("data", key)) and getattr(data, key) != _default(DataSpec, key):
            yield ("data", key), f"has no meaning for {spec.task}; remove it"


def _default(section: Any, key: str) -> Any:
    return section.model_fields[key].default


def _training(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    rule = f"has no meaning for {spec.task}; remove it"
    for key in sorted(TRAINING_OF_SOME - set(TASKS[spec.task].training)):
        default = _default(TrainingSpec, key)
        if key in spec.space:
            if set(spec.space[key].values or (None,)) - {default}:
                yield ("space", key), rule
        elif getattr(spec.training, key) != default:
            yield ("training", key), rule
    if TASKS[spec.task].boxes:
        values: tuple[Any, ...] = (spec.training.augment,)
        if "augment" in spec.space:
            values = spec.space["augment"].values or ()
        if "flip_crop" in values:
            yield place_of(spec, "augment"), "flip_crop would cut boxes apart; use none or flip"


def _model(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    facts = TASKS[spec.task]
    if not findings.ok(*places_of("model.name")) or (
        facts.input == "image" and not (facts.masks or facts.boxes)
    ):
        return
    names = {cell["model.name"] for cell in combinations(spec, ["model.name"])}
    if facts.masks:
        if bad := sorted(name for name in names if str(name).startswith(("builtin:", "timm:"))):
            remedy = "use torchvision:NAME or transformers:ID-or-path"
            yield place_of(spec, "model.name"), f"{bad[0]} makes no masks; {remedy}"
        return
    if facts.boxes:
        if others := sorted(name for name in names if not str(name).startswith("torchvision:")):
            remedy = "use torchvision:NAME, for example torchvision:fcos_resnet50_fpn"
            yield place_of(spec, "model.name"), f"{others[0]} finds no boxes; {remedy}"
        return
    bad = sorted(name for name in names if not str(name).startswith("transformers:"))
    if bad:
        yield (
            place_of(spec, "model.name"),
            f"{bad[0]} reads images, but the task is {spec.task}; use transformers:ID-or-path",
        )


def _metric(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    metric, known = spec.objective.metric, TASKS[spec.task].metrics
    named = findings.ok(("task",)) or findings.has(("objective", "metric"))
    if not findings.ok(("objective", "metric")) or not named:
        return
    if findings.ok(("task",)) and metric in METRICS and metric not in known:
        guess = near(metric, known)
        remedy = f"did you mean {guess}?" if guess else f"use one of {', '.join(known)}"
        yield ("objective", "metric"), f"does not fit {spec.task}; {remedy}"
        return
    if metric not in METRICS:
        return
    facts = METRICS[metric]
    if not findings.ok(("objective", "direction")):
        return
    if spec.direction != facts.direction:
        better = "lower" if facts.direction == "minimize" else "higher"
        yield ("objective", "direction"), f"{metric} is better when {better}; remove the line"
    target = spec.budget.target
    if target is None or not findings.ok(("budget", "target")):
        return
    low, high = facts.low, facts.high
    if (low is not None and target < low) or (high is not None and target > high):
        if high is None:
            limits = f"is not below {shown(low)}"
        elif low is None:
            limits = f"is not above {shown(high)}"
        else:
            limits = f"lies between {shown(low)} and {shown(high)}"
        percent = high == 1 and 1 < target <= 100
        remedy = f"; write {shown(target / 100)}" if percent else ""
        yield ("budget", "target"), f"{metric} {limits}{remedy}"


def _multi_label(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    data = spec.data
    if data.label_columns is not None and not data.multi_label:
        yield ("data", "label_columns"), "needs data.multi_label: true; add it, or use label_column"
    elif data.label_columns is not None and len(set(data.label_columns)) < 2:
        yield ("data", "label_columns"), "names fewer than two columns; use label_column"
    if not data.multi_label:
        return
    if data.classes is not None:
        yield ("data", "classes"), "has no meaning with multi_label; remove it"
    metric = spec.objective.metric
    if metric in TASKS[spec.task].metrics and metric not in MULTI_LABEL:
        known = ", ".join(MULTI_LABEL)
        yield ("objective", "metric"), f"does not fit multi_label; use one of {known}"
    for key in CLASS_TECHNIQUES:
        if key in spec.space or getattr(spec.training, key) != _default(TrainingSpec, key):
            yield place_of(spec, key), "has no meaning with multi_label; remove it"


def _generation(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    """How texts are written matters where a metric is of them."""
    if resolve_metric(spec.objective.metric, spec.task) in WRITTEN:
        return
    for key in ("beams", "max_new_tokens"):
        if getattr(spec.objective, key) != _default(ObjectiveSpec, key):
            metrics = ", ".join(WRITTEN)
            yield ("objective", key), f"has no meaning but with {metrics} (seq2seq); remove it"


def _writing(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
    """A model that writes has no new head, so nothing that is about one."""
    if not TASKS[spec.task].writes:
        return
    if spec.data.messages_column is not None:
        for key in ("prompt_column", "completion_column"):
            if getattr(spec.data, key) != _default(DataSpec, key):
                yield ("data", key), "has no meaning beside messages_column; remove one of them"
    for cell in known_combinations(spec, findings, "freeze"):
        if cell["freeze"] not in ("none", "blocks"):
            rule = f"{cell['freeze']} is about a new head, and {spec.task} has none"
            yield place_of(spec, "freeze"), f"{rule}; use none, blocks, or model.lora_rank"
    for name in ("head_multiplier", "model.head_init"):
        section, _, key = name.rpartition(".")
        default = _default(ModelSpec if section else TrainingSpec, key)
        given = getattr(spec.model if section else spec.training, key)
        if findings.ok(*places_of(name)) and (name in spec.space or given != default):
            yield place_of(spec, name), f"has no meaning for {spec.task}: no new head; remove it"


def _with_task(rule: Rule) -> Rule:
    """Return ``rule`` for studies whose task is known."""

    def applied(spec: StudySpec, findings: Findings) -> Iterator[Finding]:
        return rule(spec, findings) if findings.ok(("task",)) else iter(())

    return applied


TASK_RULES: tuple[Rule, ...] = (
    *map(_with_task, (_data, _training, _model, _multi_label, _writing, _generation)),
    _metric,
)
