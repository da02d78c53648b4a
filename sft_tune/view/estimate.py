"""What a study will cost, computed from what a probe measured. Drawn by `checked`."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sft_tune.spec.config import setting
from sft_tune.spec.evaluating import evaluations
from sft_tune.spec.plan import make_plan
from sft_tune.spec.search import PrunerSpec
from sft_tune.spec.space import Parameter, Value
from sft_tune.spec.study import StudySpec

SPREAD = 9
"""So many values stand for a range."""

Probed = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A probed configuration's model (a `ModelSpec` as a mapping), and the facts of its probe."""


class Estimate(NamedTuple):
    """What a study costs in seconds. Trials run to their end, but for `pruned`.

    Attributes:
        default: of a trial, the default configuration; None where its batch does not fit into
            memory.
        cheapest: of the space.
        dearest: of the space.
        mean: over the space.
        trials: how many the budget admits; None: as many as its hours.
        whole: the budget's trials and what comes before them; None where only its hours end it.
        affordable: how many trials of mean cost the budget's hours hold; None: no hours.
        pruned: the same as `whole` where the pruner stops all that chance puts behind; None: it is
            not known how many these are.
        begin: until the first trial begins.
        features: to make features of the backbone, once; None: no trial is on them.
        at_once: how many trials run at once; None: that is not known, and one is assumed.
    """

    default: float | None
    cheapest: float | None
    dearest: float | None
    mean: float | None
    trials: int | None
    whole: float | None
    affordable: int | None
    pruned: float | None = None
    begin: float = 0.0
    features: float | None = None
    at_once: int | None = 1


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
    *,
    share: float = 1.0,
) -> float:
    """Return what a trial costs, over all folds; NaN where its batch was not probed or has no room.

    ``share`` is how much it does of its horizon.
    """
    for batch in facts["batch_sizes"]:
        same = batch.get("batch_tokens") == batch_tokens
        if batch["ok"] and same and (batch_tokens or batch["batch_size"] == batch_size):
            steps = epochs * batch["steps_per_epoch"]
            training: float = steps * batch["seconds_per_step"]
            evaluation: float = (
                evaluations(spec, facts["examples"], steps) * facts["evaluation_seconds"]
            )
            of_a_fold: float = facts["setup_seconds"] + share * (training + evaluation)
            return (spec.data.folds or 1) * of_a_fold
    return math.nan


def estimate(
    spec: StudySpec, probed: Sequence[Probed], *, begin: float = 0.0, at_once: int | None = 1
) -> Estimate:
    """Return what the trials of ``spec`` cost by what was ``probed``, the default model first.

    ``begin`` and ``at_once`` are those of `Estimate`.
    """
    sizes = _default_first(spec)
    parameter = spec.space.get("epochs")
    epochs = [spec.training.epochs] if parameter is None else whole_numbers(parameter)
    default_epochs = spec.training.epochs
    if parameter is not None:
        default_epochs = int(parameter.nearest(setting(spec, "epochs")) or 1)
    default = trial_seconds(spec, probed[0][1], sizes[0][0], default_epochs, sizes[0][1])

    def over_the_space(share: float) -> list[float]:
        costs = [
            trial_seconds(spec, facts, size, count, tokens, share=share)
            for (_, facts), (size, tokens), count in itertools.product(probed, sizes, epochs)
        ]
        return [cost for cost in costs if math.isfinite(cost)]

    costs = over_the_space(1.0)
    mean = statistics.fmean(costs) if costs else None
    made = [facts.get("features_seconds") for _, facts in probed]
    known = [seconds for seconds in made if seconds is not None]
    features = sum(known) if known else None
    before, slots = begin + (features or 0.0), at_once or 1
    plan, share = make_plan(spec), least_share(spec.pruner)
    trials = plan.limit(spec.budget)
    whole = pruned = affordable = None
    if mean is not None and trials is not None:
        of_all = (default if math.isfinite(default) else mean) + (trials - 1) * mean
        whole = before + of_all / min(slots, trials)
        if share is not None:
            # The points that are enqueued are never pruned.
            exempt = max(spec.pruner.startup_trials, len(plan.enqueued))
            spared = max(0, trials - exempt) * (mean - statistics.fmean(over_the_space(share)))
            pruned = whole - spared / min(slots, trials)
    if mean and spec.budget.hours is not None:
        limit = spec.budget.hours * 3600
        affordable = max(1, math.floor((limit - before) * slots / mean))
        whole = limit if whole is None else min(whole, limit)
        pruned = None if pruned is None else min(pruned, limit)
    return Estimate(
        default=default if math.isfinite(default) else None,
        cheapest=min(costs, default=None),
        dearest=max(costs, default=None),
        mean=mean,
        trials=trials,
        whole=whole,
        affordable=affordable,
        pruned=pruned,
        begin=begin,
        features=features,
        at_once=at_once,
    )


def least_share(pruner: PrunerSpec) -> float | None:
    """Return how much of its horizon a trial does in the mean where chance says who is behind.

    As many go on at each cut as the pruner is made for; later trials that are better, and those
    that are judged before others have come as far, do more. None: that is not known.
    """
    if pruner.name in ("none", "wilcoxon"):
        return None
    first = pruner.first / 100
    if pruner.name in ("median", "percentile"):
        left = pruner.percentile / 100 if pruner.name == "percentile" else 0.5
        return first + left * (1 - first)
    share, left, reached = first, 1.0, first
    while reached < 1:
        left /= pruner.reduction
        cut = min(1.0, reached * pruner.reduction)
        share, reached = share + left * (cut - reached), cut
    return share


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
