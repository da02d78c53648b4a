"""What a study's trials say about its hyperparameters: fair scores, influence, places of failure.

Trials that were cut early and trials that ran to their end are compared at a progress that both
have reached: a value at the end would be of survivors only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sft_tune.spec.space import Parameter, Value
from sft_tune.spec.study import StudySpec
from sft_tune.store.rows import EvaluationRow, TrialRow
from sft_tune.view.statistics import Influence, bins, influence

ENDED = ("COMPLETE", "PRUNED", "FAIL")
GROUPS = 4
"""A range is looked at in so many groups of about equal size."""
SEEN = 0.01
"""A parameter is seen to matter where chance explains as much less often than this."""
PART = 8
"""Trials to a part of a range whose line is taken out."""


class Evidence(NamedTuple):
    """A study as its advisers see it.

    Attributes:
        spec: the study.
        rows: its trials that have ended and are no duplicates.
        curves: the objective by progress, of each trial by number; better is always more.
        done: completed trials, the best first.
    """

    spec: StudySpec
    rows: tuple[TrialRow, ...]
    curves: Mapping[int, Mapping[int, float]]
    done: tuple[TrialRow, ...]

    @property
    def sign(self) -> int:
        """1 where the objective is maximized, -1 where it is minimized."""
        return 1 if self.spec.direction == "maximize" else -1


def gather(spec: StudySpec, rows: Sequence[TrialRow], rungs: Sequence[EvaluationRow]) -> Evidence:
    """Return the evidence in the trials ``rows`` and their ``rungs``."""
    metric = spec.objective.metric
    sign = 1 if spec.direction == "maximize" else -1
    own = tuple(row for row in rows if _has_ended(row) and row.duplicate_of is None)
    curves: dict[int, dict[int, float]] = {row.number: {} for row in own}
    for rung in rungs:
        value = rung.metrics.get(metric)
        if rung.number in curves and value is not None and value == value:
            curves[rung.number][rung.progress] = sign * value
    done = [row for row in own if row.state == "COMPLETE" and row.value is not None]
    done.sort(key=lambda row: (-sign * (row.value or 0.0), row.number))
    return Evidence(spec, own, curves, tuple(done))


def _has_ended(row: TrialRow) -> bool:
    """Tell whether a trial has ended; of one that is Optuna's alone nobody wrote down why."""
    return row.reason is not None or (row.phase is None and row.state in ENDED)


def common_progress(evidence: Evidence) -> int | None:
    """Return the furthest progress that every trial with a rung has reached; None: there is none.

    Trials that failed or diverged are left out: they would make it the first rung.
    """
    reached = [
        max(evidence.curves[row.number])
        for row in evidence.rows
        if row.state in ("COMPLETE", "PRUNED")
        and row.reason not in ("diverged", "out_of_memory", "stopped")
        and evidence.curves[row.number]
    ]
    return min(reached, default=None)


def scores_at(evidence: Evidence, progress: int) -> dict[int, float]:
    """Return by trial the best objective up to ``progress``, of those that have reached it."""
    return {
        number: max(value for at, value in curve.items() if at <= progress)
        for number, curve in evidence.curves.items()
        if curve and max(curve) >= progress and min(curve) <= progress
    }


def final_scores(evidence: Evidence) -> dict[int, float]:
    """Return by trial the objective of those that completed; better is more."""
    return {row.number: evidence.sign * (row.value or 0.0) for row in evidence.done}


def grouped(parameter: Parameter, values: Sequence[Value], count: int = GROUPS) -> list[int]:
    """Return for each of ``values`` the number of its group: a choice, or a part of the range."""
    kinds = list(dict.fromkeys(values))
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in kinds)
    if parameter.values is not None or not numeric or len(kinds) <= count:
        return [kinds.index(value) for value in values]
    return bins([float(value) for value in values if isinstance(value, int | float)], count)


def influence_of(evidence: Evidence, name: str, scores: Mapping[int, float]) -> Influence | None:
    """Return how much the parameter ``name`` says about ``scores`` (see `statistics.influence`).

    Only trials in which it was searched count.
    """
    rows = [row for row in evidence.rows if row.number in scores and name in row.params]
    if len(rows) < 5:
        return None
    groups = grouped(evidence.spec.space[name], [row.params[name] for row in rows])
    return influence(groups, [scores[row.number] for row in rows])


def seen_to_matter(evidence: Evidence) -> tuple[str, ...]:
    """Return the parameters that say more about the scores than chance does (p < `SEEN`).

    At the progress that all trials reached, or at the end; the least p first.
    """
    progress = common_progress(evidence)
    places = [final_scores(evidence)]
    if progress is not None:
        places.append(scores_at(evidence, progress))
    least = {}
    for name in evidence.spec.space:
        found = (influence_of(evidence, name, scores) for scores in places)
        least[name] = min((one.p for one in found if one is not None), default=1.0)
    return tuple(sorted((n for n in least if least[n] < SEEN), key=lambda n: least[n]))


def without(
    evidence: Evidence, names: Sequence[str], scores: Mapping[int, float]
) -> dict[int, float]:
    """Return ``scores`` less what the parameters ``names`` explain, one after the other.

    A weak influence is not seen beside strong ones; in what these leave, it is. A choice explains
    the mean of its trials; a range the straight line through each of its parts of `PART` trials.
    """
    rest = dict(scores)
    for name in names:
        parameter = evidence.spec.space[name]
        rows = [row for row in evidence.rows if row.number in rest and name in row.params]
        values = [row.params[name] for row in rows]
        groups = grouped(parameter, values, max(1, len(rows) // PART))
        places = [place_in_range(parameter, value) or 0.0 for value in values]
        left = _without_lines(groups, places, [rest[row.number] for row in rows])
        rest |= {row.number: value for row, value in zip(rows, left, strict=True)}
    return rest


def _without_lines(
    groups: Sequence[int], places: Sequence[float], scores: Sequence[float]
) -> list[float]:
    """Return ``scores`` less the least-squares line over ``places`` in each of the ``groups``."""
    found = np.array(scores)
    at, member = np.array(places), np.array(groups)
    for group in set(groups):
        own = member == group
        x, y = at[own] - at[own].mean(), found[own] - found[own].mean()
        spread = float(x @ x)
        found[own] = y if spread == 0 else y - x * float(x @ y) / spread
    return [float(value) for value in found]


def together(
    evidence: Evidence, name: str, other: str, scores: Mapping[int, float]
) -> Influence | None:
    """Return how much ``name`` and ``other`` say together about ``scores``.

    Of each a range counts in halves. What either says alone is to be taken out before, where only
    what they say together is asked for.
    """
    rows = [
        row
        for row in evidence.rows
        if row.number in scores and name in row.params and other in row.params
    ]
    if len(rows) < 5:
        return None
    halves = [
        grouped(evidence.spec.space[one], [row.params[one] for row in rows], 2)
        for one in (name, other)
    ]
    pairs = list(zip(*halves, strict=True))
    kinds = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    return influence([kinds[pair] for pair in pairs], [scores[row.number] for row in rows])


def place_in_range(parameter: Parameter, value: Value) -> float | None:
    """Return where ``value`` lies in its range, 0 (low) to 1 (high), in the range's own scale."""
    if parameter.values is not None or isinstance(value, bool | str) or value is None:
        return None
    low, high = parameter.bounds()
    if low == high:
        return None
    if parameter.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)
