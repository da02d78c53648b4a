"""Rules on the space: ranges whose edge the best trials lean on, parameters without influence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sft_tune.spec.checks import setting_rule
from sft_tune.spec.function_task import is_function
from sft_tune.spec.space import Parameter, Value
from sft_tune.spec.yaml12 import to_flow
from sft_tune.view import words
from sft_tune.view.advice import FEWEST, Advice, Facts
from sft_tune.view.evidence import (
    SEEN,
    Evidence,
    common_progress,
    final_scores,
    influence_of,
    place_in_range,
    scores_at,
    together,
    without,
)

EDGE = 0.05
NO_INFLUENCE_TRIALS = 40


def edge_rule(facts: Facts) -> Iterator[Advice]:
    """Yield each range whose edge the best trials lean on.

    The leader must lie within 5 % of the edge, and so must the middle of the best quarter of the
    completed trials lie in the outer fifth: one trial at the edge is often chance.
    """
    evidence = facts.evidence
    if len(evidence.done) < FEWEST:
        return
    leader = evidence.done[0]
    for name, parameter in evidence.spec.space.items():
        value = leader.params.get(name)
        place = place_in_range(parameter, value)
        if place is None or EDGE < place < 1 - EDGE:
            continue
        best = [row for row in evidence.done if name in row.params]
        best = best[: max(3, len(best) // 4)]
        places = sorted(place_in_range(parameter, row.params[name]) or 0.0 for row in best)
        middle = places[len(places) // 2]
        upper = place > 0.5
        if not (middle >= 0.8 if upper else middle <= 0.2):
            continue
        free = is_function(evidence.spec.task)
        wider = widened(name, parameter, upper=upper, free=free)
        if wider is None:
            continue
        end = "upper" if upper else "lower"
        low, high = wider["low"], wider["high"]
        goes_on = "" if facts.is_foreign else " (--accept-changes goes on with it)"
        yield Advice(
            "edge",
            f"{name}: the best trial has {words.setting(value)}, at the {end} edge of its range, "
            f"and so have most of the best {len(best)}; widen it to "
            f"{words.setting(high if upper else low)}{goes_on}",
            {"name": name, "value": value, "place": place, "middle_of_best": middle, **wider},
            "space",
            f"{name}: {to_flow(wider)}",
        )


def widened(
    name: str, parameter: Parameter, *, upper: bool, free: bool = False
) -> dict[str, Any] | None:
    """Return the range of ``name`` wider at one end, as a study file has it; None: it cannot be.

    A logarithmic range grows by half of its decades (by one at the most), another by half of its
    width, in whole steps, as far as the setting admits; one of a training function (``free``)
    admits any.
    """
    low, high = parameter.bounds()
    step = parameter.step or (1 if parameter.is_integer else None)
    for share in (0.5, 0.25, 0.1):
        if parameter.log:
            factor = min(10.0, (high / low) ** share)
            moved = high * factor if upper else low / factor
        else:
            width = (high - low) * share
            if step is not None:
                width = max(step, round(width / step) * step)
            moved = high + width if upper else low - width
        new: Value = round(moved) if parameter.is_integer else float(f"{moved:.2g}")
        if new in (low, high) or not (free or setting_rule(name, new) is None):
            continue
        written = parameter.model_dump(mode="json", exclude_defaults=True)
        return {**written, "high" if upper else "low": new}
    return None


def influence_rule(facts: Facts) -> Iterator[Advice]:
    """Yield each parameter that says nothing about the score, where others are seen to.

    At least 40 trials; no better than the middle of its permutation null at the progress that all
    trials reached, at the end, and in what other influences leave there; nothing said together
    with another parameter either; and some other parameter is far from its own (p < 0.01), so
    that the trials can show an influence where there is one. Of synthetic studies in which every
    parameter matters about 1 in 100 hears of one that does not.
    """
    evidence = facts.evidence
    progress = common_progress(evidence)
    if progress is None:
        return
    early, final = scores_at(evidence, progress), final_scores(evidence)
    if len(early) < NO_INFLUENCE_TRIALS or not evidence.done:
        return
    found = {name: influence_of(evidence, name, early) for name in evidence.spec.space}
    ends = {name: influence_of(evidence, name, final) for name in evidence.spec.space}
    seen = [
        name
        for name in evidence.spec.space
        if any(one is not None and one.p < SEEN for one in (found[name], ends[name]))
    ]
    if not seen:
        return
    rest = without(evidence, seen, final)
    at = f"step {progress}" if facts.is_foreign else f"{progress} %"
    needed = {other for p in evidence.spec.space.values() for other in p.when or {}}
    for name, one in found.items():
        at_end = ends[name]
        if one is None or at_end is None or name in needed or min(one.p, at_end.p) < 0.5:
            continue
        left = influence_of(evidence, name, rest)
        if left is None or left.p < 0.5 or _matters_with_others(evidence, name, rest):
            continue
        value = evidence.done[0].params.get(name)
        if value is None and name not in evidence.done[0].params:
            continue
        section, _, key = name.rpartition(".")
        # A function's parameter has no place in the study file but the space.
        is_ours = not is_function(evidence.spec.task)
        yield Advice(
            "influence",
            f"{name} shows no influence on {evidence.spec.objective.metric}: it explains "
            f"{one.share:.0%} of the ranks of {one.n} trials at {at}, as much as chance "
            f"(p {one.p:.2f}; {at_end.p:.2f} of {at_end.n} at the end); fix it in a next study",
            {"name": name, "share": one.share, "p": one.p, "p_at_end": at_end.p, "trials": one.n},
            (section or "training") if is_ours else None,
            to_flow({key: value})[1:-1] if is_ours else None,
            (f"space.{name}",) if is_ours else (),
        )


def _matters_with_others(evidence: Evidence, name: str, rest: Mapping[int, float]) -> bool:
    """Tell whether ``name`` may say something together with another parameter (p < 0.2)."""
    others = (other for other in evidence.spec.space if other != name)
    pairs = (together(evidence, name, other, rest) for other in others)
    return any(pair is not None and pair.p < 0.2 for pair in pairs)
