"""The sections of the study file on the search: sampler, pruner, budget, and confirmation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sft_tune.spec.section import Section
from sft_tune.spec.space import Value


class SamplerSpec(Section):
    """How configurations are chosen."""

    name: Literal["tpe", "random", "grid", "gp", "qmc"] = Field(
        "tpe", description="tpe (Bayesian), random, grid, gp (Gaussian process), qmc."
    )
    startup_trials: int = Field(10, ge=1, description="Trials before tpe or gp begin to model.")
    startup: Literal["random", "qmc"] = Field(
        "random",
        description="How these are drawn: random, or qmc (evenly over the ranges: a scrambled "
        "Sobol sequence; choices and what depends on them at random).",
    )
    cost_aware: Literal["auto"] | bool = Field(
        "auto",
        description="tpe: prefer trials of few epochs and quick models among those that promise as "
        "much. auto: where budget.target, or budget.hours without budget.trials, ends the study.",
    )
    enqueue: tuple[dict[str, Value], ...] = Field(
        (),
        description="Configurations to try first, after the default one: keys of the space; "
        "those left out take their default. Like the default one, they are never pruned.",
    )


class PrunerSpec(Section):
    """When a trial that is behind is stopped."""

    name: Literal["asha", "hyperband", "median", "percentile", "wilcoxon", "none"] = Field(
        "asha",
        description="asha (asynchronous successive halving), hyperband, median, percentile, "
        "wilcoxon (signed-rank test against the best trial, fold by fold; with data.folds), none.",
    )
    first: int = Field(
        20, ge=1, le=99, description="Progress in percent before which nothing is pruned."
    )
    reduction: int = Field(
        3, ge=2, description="asha and hyperband: one in this many goes on at each cut."
    )
    percentile: float = Field(
        25.0, gt=0, lt=100, description="percentile: keep a trial in this best percentage."
    )
    p_threshold: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="wilcoxon: a trial is stopped when it is worse than the best one with a "
        "p-value below this.",
    )
    startup_trials: int = Field(
        5,
        ge=0,
        description="All but wilcoxon: nothing is pruned before so many trials are completed.",
    )


class BudgetSpec(Section):
    """When the study ends: at the first of these. All are totals of the study, over restarts."""

    trials: int | None = Field(
        None,
        ge=1,
        description="Total number of trials. Default: 30; for grid, each cell once.",
    )
    hours: float | None = Field(
        None,
        gt=0,
        description="Total hours that the study is being run. No trial starts after; those "
        "that run are finished.",
    )
    target: float | None = Field(
        None,
        description="Stop when a trial has ended with this value or a better one; those that "
        "still run are ended where they are.",
    )
    failures: int = Field(5, ge=1, description="Give up after so many failed trials in a row.")


class ConfirmSpec(Section):
    """Which configurations are trained again after the search, and how often."""

    top: int = Field(
        3, ge=1, description="So many of the best trials; the default configuration comes too."
    )
    seeds: int = Field(
        5,
        ge=1,
        le=1000,
        description="Fresh seeds that each is trained with; the same for all, so that they can "
        "be compared seed by seed.",
    )
