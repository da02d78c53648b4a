"""The section `objective` of the study file, and what its `auto` stands for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sft_tune.spec.function_task import is_function
from sft_tune.spec.section import Section
from sft_tune.spec.tasks import METRICS, SCORE, Direction, Metric, Task, resolve_metric

# The metrics of a user's own training function (see `function_task`).
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.@/-]*$", max_length=64)]


MOST_RUNGS, FEWER_RUNGS = 10, 5
"""Of ``rungs: auto``. Every one of the fewer is one of the most."""


class ObjectiveSpec(Section):
    """What is optimized: one metric on the validation split."""

    metric: Metric | MetricName = Field(
        "auto",
        description="The metric to optimize, on validation; auto: the first of the task's. Any "
        "that a training function of yours reports.",
    )
    direction: Literal["auto", "maximize", "minimize"] = Field(
        "auto",
        description="auto: minimize losses and errors, maximize scores; a training function of "
        "yours needs one of the two others.",
    )
    rungs: Literal["auto"] | Annotated[int, Field(ge=1, le=100)] = Field(
        "auto",
        description="Evaluations per trial, evenly spaced over its own schedule; a trial "
        "may be pruned at each. auto: 10, or 5 where 10 would be over 5 % of the shortest trial "
        "and neither pruner, patience nor folds need them.",
    )
    evaluate: Literal["auto", "all"] | Annotated[int, Field(ge=2)] = Field(
        "auto",
        description="Validation examples of every rung but the last, the same for all trials "
        "(stratified, drawn by data.split_seed): all, or so many. auto: all, unless that would be "
        "over 5 % of the shortest trial; then fewer, at least 1000. What becomes a trial's value "
        "is always measured on all of them; a trial that is pruned before that has none.",
    )
    beams: int = Field(
        1,
        ge=1,
        le=64,
        description="Metrics of what is written (seq2seq): beams of the search for the likeliest "
        "text; 1: greedy.",
    )
    max_new_tokens: int = Field(
        64, ge=1, description="The same: a text is ended after this many tokens."
    )


def with_metric(objective: ObjectiveSpec, task: Task) -> ObjectiveSpec:
    """Return ``objective`` of a study of ``task`` with its metric named."""
    if is_function(task):
        return objective
    metric = resolve_metric(objective.metric, task)
    return (
        objective.model_copy(update={"metric": metric}) if objective.metric == "auto" else objective
    )


def resolve_direction(objective: ObjectiveSpec) -> Direction:
    """Return the direction of ``objective``: losses are minimized, scores maximized."""
    if objective.direction != "auto":
        return objective.direction
    # A metric of a training function that has no direction is refused where the file is checked.
    return METRICS.get(objective.metric, SCORE).direction


def limits_of(objective: ObjectiveSpec, task: str) -> tuple[float | None, float | None]:
    """Return the least and the greatest value of the metric; None: no limit, or none is known.

    What a training function calls accuracy may be in percent: of its metrics nothing is known.
    """
    facts = None if is_function(task) else METRICS.get(objective.metric)
    return (None, None) if facts is None else (facts.low, facts.high)
