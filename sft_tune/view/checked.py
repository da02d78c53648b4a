"""What `check` has found of a study: its data, its models, its cost, and what that assumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_tune.spec.advice import idle_batch_sizes
from sft_tune.spec.evaluating import early_of
from sft_tune.spec.stacking import why_alone
from sft_tune.spec.study import StudySpec
from sft_tune.spec.tasks import TASKS
from sft_tune.view import words
from sft_tune.view.estimate import Estimate, Probed
from sft_tune.view.tables import plain_table

OF_A_STEP = (
    *("freeze_blocks", "optimizer", "precision", "micro_batch", "gradient_checkpointing"),
    *("averaging", "r_drop", "augment", "auto_augment", "mix", "model.lora_rank"),
)
"""Settings that decide what a step takes, of which the default is measured alone."""


def draw_check(
    spec: StudySpec, device: str, probed: Sequence[Probed], cost: Estimate
) -> RenderableType:
    """Return what was found out about the study: its data, its models, its cost."""
    facts = probed[0][1]
    parts: list[RenderableType] = [
        Text.assemble((spec.name, "bold"), f"  {spec.task}, on {device}"),
        "",
        _data(spec, facts),
        "",
        _models(spec, probed),
        "",
        _cost(spec, cost),
    ]
    if notes := warnings(spec, probed):
        parts += ["", Text("\n".join(notes), style="yellow")]
    return Group(*parts)


def warnings(spec: StudySpec, probed: Sequence[Probed]) -> list[str]:
    """Return what the study file allows and a person should know before it is run."""
    notes = [
        f"batch size {_size(batch)}: {batch['note']}"
        for _, found in probed
        for batch in found["batch_sizes"]
        if batch["note"]
    ]
    idle = idle_batch_sizes(spec, probed[0][1]["examples"]["train"])
    return notes if idle is None else [*notes, idle]


def _size(batch: Mapping[str, Any]) -> str:
    tokens = batch.get("batch_tokens")
    return str(batch["batch_size"]) if tokens is None else f"{tokens} tokens"


def _grid() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def _data(spec: StudySpec, facts: Mapping[str, Any]) -> Table:
    data, labels = facts["data"], [str(label) for label in facts["labels"]]
    table = _grid()
    table.add_row("data", words.short_path(data["source"]))
    examples = {split: n for split, n in data["examples"].items() if n is not None}
    told = ", ".join(f"{split} {count}" for split, count in examples.items())
    if data.get("validation_from") == "train":
        told += " (validation was taken from train)"
    table.add_row("examples", told)
    if (early := early_of(spec, facts["examples"])) < facts["examples"]["validation"]:
        table.add_row("early rungs", f"on {early} examples of validation, the last on all")
    shown = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
    if labels:
        table.add_row("classes", f"{len(labels)}: {shown}")
    counts = data.get("class_counts", {}).get("train")
    if counts:
        least, most = min(counts.values()), max(counts.values())
        told = f"{least} to {most}" if least < most else f"{least}"
        table.add_row(_counted(spec), f"{told} in train")
    if data.get("image_size"):
        height, width = data["image_size"]
        table.add_row("images", f"{width} x {height} pixels")
    if data.get("tokens"):
        tokens = data["tokens"]["train"]
        table.add_row("tokens", _lengths(tokens))
        if "target_tokens" in data:
            table.add_row("of targets", _lengths(data["target_tokens"]["train"]))
        if "learnt" in tokens:
            rows = words.plural(tokens["rows"], "row")
            table.add_row("to learn", f"{tokens['learnt']} of the tokens of train, in {rows}")
    if data.get("audio"):
        sounds = data["audio"]["train"]
        cut = (
            f", {sounds['share_cut']:.0%} cut to {sounds['limit']:g}" if sounds["share_cut"] else ""
        )
        told = f"median {sounds['median']:.1f}, 95 % below {sounds['p95']:.1f}"
        table.add_row("seconds", f"{told}, at most {sounds['max']:.1f}{cut}")
    return table


def _counted(spec: StudySpec) -> str:
    """Return what there are so and so many of."""
    facts = TASKS[spec.task]
    if facts.boxes:
        return "boxes a class"
    if facts.input == "words":
        return "words a tag"
    return "a label" if spec.data.multi_label else "a class"


def _lengths(tokens: Mapping[str, Any]) -> str:
    """Return what is known of the lengths of texts, in words."""
    cut = f", {tokens['share_cut']:.0%} cut to {tokens['limit']}" if tokens["share_cut"] else ""
    told = f"median {tokens['median']:.0f}, 95 % below {tokens['p95']:.0f}"
    return f"{told}, at most {tokens['max']}{cut}"


def _models(spec: StudySpec, probed: Sequence[Probed]) -> Table:
    table = plain_table()
    table.add_column("model", overflow="fold")
    for name in ("parameters", "trained", "batch", "s/step", "steps/epoch", "s/evaluation"):
        table.add_column(name, justify="right")
    table.add_column("memory", justify="right", no_wrap=True)
    for model, facts in probed:
        name = words.setting(model["name"])
        if model["weights"] != "DEFAULT":
            name += f", weights {words.setting(model['weights'])}"
        if "freeze" in spec.space:
            name += f", freeze {facts['freeze']}"
        for place, batch in enumerate(facts["batch_sizes"]):
            seconds = batch["seconds_per_step"]
            table.add_row(
                *((name, words.amount(facts["parameters"])) if not place else ("", "")),
                "" if place else words.amount(facts["trained_parameters"]),
                _size(batch),
                words.number(seconds, 3) if batch["ok"] else "no room",
                str(batch["steps_per_epoch"]),
                "" if place else words.number(facts["evaluation_seconds"], 3),
                words.size(batch["peak_memory"]),
            )
    return table


def _cost(spec: StudySpec, cost: Estimate) -> Table:
    table = _grid()
    table.add_row("a trial", f"{words.duration(cost.default)} with the default configuration")
    if cost.cheapest != cost.dearest:
        span = f"{words.duration(cost.cheapest)} to {words.duration(cost.dearest)} over the space"
        table.add_row("", f"{span}, {words.duration(cost.mean)} in the mean")
    before = f"{words.duration(cost.begin)} to begin" if cost.begin else ""
    if cost.features:
        made = f"{words.duration(cost.features)} to make the features that heads train on"
        before = f"{before}, {made}" if before else made
    if before:
        table.add_row("once", before)
    if cost.whole is not None:
        of = words.plural(cost.trials, "trial") if cost.trials else "the hours"
        told = f"{words.duration(cost.whole)} at most for {of}"
        if cost.pruned is not None and cost.pruned < cost.whole:
            span = f"{words.duration(cost.pruned)} to {words.duration(cost.whole)}"
            told = f"{span} for {of}: the less, the more are pruned"
        table.add_row("the budget", told)
    if cost.affordable is not None:
        hours = words.number(spec.budget.hours)
        many = words.plural(cost.affordable, "whole trial")
        table.add_row("", f"{hours} hours hold about {many}")
    table.add_row("assumed", _assumed(spec, cost))
    return table


def _assumed(spec: StudySpec, cost: Estimate) -> str:
    """Return what the estimate takes for granted, and what would make it another."""
    count = cost.at_once or 1
    told = ["one trial at a time" if count == 1 else f"{count} trials at a time"]
    told += ["spread evenly over the space"] if spec.space else []
    if others := [name for name in OF_A_STEP if name in spec.space]:
        told.append(f"steps as with the default {', '.join(others)}")
    text, stack = ", ".join(told), spec.resources.stack
    if stack != "off" and why_alone(spec) is None:
        if stack != "auto":
            return f"{text}; a stack of {stack} takes less than its trials one by one"
        faster = "stacks of them" if cost.at_once else "more, or stacks of them,"
        return f"{text}; `start` measures whether {faster} are faster"
    return text if cost.at_once else f"{text}; `start` measures whether more are faster"
