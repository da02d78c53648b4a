"""What a study will cost, from what a probe measured: computed by `estimate`, drawn by `draw`."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_tune.spec.advice import idle_batch_sizes
from sft_tune.spec.config import setting
from sft_tune.spec.evaluating import early_of, evaluations
from sft_tune.spec.plan import make_plan
from sft_tune.spec.space import Parameter, Value
from sft_tune.spec.study import StudySpec
from sft_tune.spec.tasks import TASKS
from sft_tune.view import words
from sft_tune.view.tables import plain_table

SPREAD = 9
"""So many values stand for a range."""

Probed = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A probed configuration's model (a `ModelSpec` as a mapping), and the facts of its probe."""


class Estimate(NamedTuple):
    """What trials cost that run to their end, in seconds; pruned and repeated ones cost less.

    Attributes:
        default: the default configuration; None where its batch does not fit into memory.
        cheapest: of the space.
        dearest: of the space.
        mean: over the space.
        trials: how many the budget admits; None: as many as its hours.
        whole: the budget's trials; None where only its hours end it.
        affordable: how many trials of mean cost the budget's hours hold; None: no hours.
    """

    default: float | None
    cheapest: float | None
    dearest: float | None
    mean: float | None
    trials: int | None
    whole: float | None
    affordable: int | None


def batch_sizes(spec: StudySpec) -> list[int]:
    """Return the batch sizes to probe: the default one, and the choices or ends of the space.

    None where every trial has batches of so many tokens.
    """
    if None not in _to_probe(spec, "batch_tokens"):
        return []
    return [size for size in _to_probe(spec, "batch_size") if isinstance(size, int)]


def token_budgets(spec: StudySpec) -> list[int]:
    """Return the values of ``batch_tokens`` to probe, likewise."""
    return [tokens for tokens in _to_probe(spec, "batch_tokens") if isinstance(tokens, int)]


def _to_probe(spec: StudySpec, name: str) -> list[Value]:
    fixed, parameter = getattr(spec.training, name), spec.space.get(name)
    if parameter is None:
        return [fixed]
    ends = parameter.values if parameter.values is not None else parameter.bounds()
    beside = [fixed] if parameter.when else []
    return list(dict.fromkeys((parameter.nearest(fixed), *ends, *beside)))


def _default_first(spec: StudySpec) -> list[tuple[int | None, int | None]]:
    """Return every size of a batch, in examples or in tokens, that of the default trial first."""
    sizes: list[tuple[int | None, int | None]] = [(size, None) for size in batch_sizes(spec)]
    budgets: list[tuple[int | None, int | None]] = [(None, n) for n in token_budgets(spec)]
    return sizes + budgets if _to_probe(spec, "batch_tokens")[0] is None else budgets + sizes


def trial_seconds(
    spec: StudySpec,
    facts: Mapping[str, Any],
    batch_size: int | None,
    epochs: int,
    batch_tokens: int | None = None,
) -> float:
    """Return what a whole trial costs; NaN where its batch was not probed or does not fit."""
    for batch in facts["batch_sizes"]:
        same = batch.get("batch_tokens") == batch_tokens
        if batch["ok"] and same and (batch_tokens or batch["batch_size"] == batch_size):
            steps = epochs * batch["steps_per_epoch"]
            training: float = steps * batch["seconds_per_step"]
            evaluation: float = (
                evaluations(spec, facts["examples"], steps) * facts["evaluation_seconds"]
            )
            return facts["setup_seconds"] + training + evaluation  # type: ignore[no-any-return]
    return math.nan


def estimate(spec: StudySpec, probed: Sequence[Probed]) -> Estimate:
    """Return what the trials of ``spec`` cost by what was ``probed``, the default model first."""
    sizes = _default_first(spec)
    parameter = spec.space.get("epochs")
    epochs = [spec.training.epochs] if parameter is None else whole_numbers(parameter)
    default_epochs = spec.training.epochs
    if parameter is not None:
        default_epochs = int(parameter.nearest(setting(spec, "epochs")) or 1)
    default = trial_seconds(spec, probed[0][1], sizes[0][0], default_epochs, sizes[0][1])
    costs = [
        trial_seconds(spec, facts, size, count, tokens)
        for (_, facts), (size, tokens), count in itertools.product(probed, sizes, epochs)
    ]
    costs = [cost for cost in costs if math.isfinite(cost)]
    mean = statistics.fmean(costs) if costs else None
    trials = make_plan(spec).limit(spec.budget)
    whole = affordable = None
    if mean is not None and trials is not None:
        first = default if math.isfinite(default) else mean
        whole = first + (trials - 1) * mean
    if mean and spec.budget.hours is not None:
        affordable = max(1, math.floor(spec.budget.hours * 3600 / mean))
        limit = spec.budget.hours * 3600
        whole = limit if whole is None else min(whole, limit)
    return Estimate(
        default=default if math.isfinite(default) else None,
        cheapest=min(costs, default=None),
        dearest=max(costs, default=None),
        mean=mean,
        trials=trials,
        whole=whole,
        affordable=affordable,
    )


def whole_numbers(parameter: Parameter) -> list[int]:
    """Return the values of an integer ``parameter``, or some that are spread over its range."""
    if parameter.values is not None:
        return [value for value in parameter.values if isinstance(value, int)]
    low, high = parameter.bounds()
    shares = [i / (SPREAD - 1) for i in range(SPREAD)]
    if parameter.log:
        places = [low * (high / low) ** share for share in shares]
    else:
        places = [low + (high - low) * share for share in shares]
    found: list[Value] = [parameter.nearest(place) for place in places]
    return list(dict.fromkeys(int(value) for value in found if isinstance(value, int | float)))


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
        _models(probed),
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


def _models(probed: Sequence[Probed]) -> Table:
    table = plain_table()
    table.add_column("model", overflow="fold")
    for name in ("parameters", "trained", "batch", "s/step", "steps/epoch", "s/evaluation"):
        table.add_column(name, justify="right")
    table.add_column("memory", justify="right", no_wrap=True)
    for model, facts in probed:
        name = words.setting(model["name"])
        if model["weights"] != "DEFAULT":
            name += f", weights {words.setting(model['weights'])}"
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
    if cost.whole is not None:
        of = words.plural(cost.trials, "trial") if cost.trials else "the hours"
        table.add_row("the budget", f"{words.duration(cost.whole)} at most for {of}")
    if cost.affordable is not None:
        hours = words.number(spec.budget.hours)
        many = words.plural(cost.affordable, "whole trial")
        table.add_row("", f"{hours} hours hold about {many}")
    if spec.pruner.name != "none":
        table.add_row("", "pruned and repeated trials cost less")
    return table
