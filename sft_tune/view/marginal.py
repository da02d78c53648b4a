"""What one hyperparameter does to the objective: its values, or parts of its range, compared."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_tune.errors import UserError
from sft_tune.spec.objective import limits_of
from sft_tune.spec.space import Value
from sft_tune.store.rows import TrialRow
from sft_tune.view import words
from sft_tune.view.adjusted import Adjusted, adjusted_means, scores_needed
from sft_tune.view.contest_tables import Cells
from sft_tune.view.evidence import (
    Evidence,
    common_progress,
    final_scores,
    grouped,
    influence_of,
    place_in_range,
    scores_at,
)
from sft_tune.view.statistics import Influence, Interval, t_interval

_ABSENT = object()


class Group(NamedTuple):
    """The trials with one value, or with those of one part of the range.

    Attributes:
        label: the value, or the least and the greatest of the trials.
        mean: of their scores, with the interval of Student's t.
        median: of their scores.
        best: of their scores.
        adjusted: mean with what the other hyperparameters explain taken out (see `marginal`);
            None: too few trials for one.
        adjusted_half: half of its 95 % interval.
        completed: how many ran to their end.
        final: mean of those at their end; None: none did.
        final_best: the best of those.
    """

    label: str
    mean: Interval
    median: float
    best: float
    adjusted: float | None
    adjusted_half: float | None
    completed: int
    final: Interval | None
    final_best: float | None


class Marginal(NamedTuple):
    """The effect of one hyperparameter.

    Attributes:
        study: the study's name.
        name: the hyperparameter.
        metric: the objective.
        where: at which progress the scores are compared, in words.
        groups: in the order of their values.
        influence: how much it says about the ranks of the scores; None: nothing can be said.
        span: the adjusted means of the best and the worst group: their labels, the difference,
            and half of its 95 % interval; None: there are none.
        needed: how many trials adjusted means need; 0: of one group there is nothing to adjust.
    """

    study: str
    name: str
    metric: str
    where: str
    groups: tuple[Group, ...]
    influence: Influence | None
    span: tuple[str, str, float, float] | None = None
    needed: int = 0


def marginal(evidence: Evidence, name: str, *, unit: str = "%") -> Marginal:
    """Return the marginal effect of the hyperparameter ``name`` on the objective.

    Scores are the best up to the furthest progress that all trials have reached: those that the
    pruner cut count there like all others (a value at the end would be of survivors only). Where
    nothing was reported on the way, the completed trials are compared at their end.

    A sampler that learns chooses good values of the others together with good values of this one,
    so that plain means mix their effects. The adjusted mean takes out what the others explain, by
    least squares: of a range a parabola, of choices a level each (see `adjusted_means`).

    Args:
        evidence: the study.
        name: a hyperparameter of its space.
        unit: what progress is counted in: ``%``, or ``steps`` of a study that is Optuna's alone.

    Raises:
        UserError: no such hyperparameter, or no trial to compare.
    """
    if name not in evidence.spec.space:
        known = ", ".join(evidence.spec.space) or "nothing"
        raise UserError(
            f"study {evidence.spec.name!r} does not search {name!r}; it searches {known}"
        )
    progress = common_progress(evidence)
    final = final_scores(evidence)
    scores = final if progress is None else scores_at(evidence, progress)
    rows = [row for row in evidence.rows if row.number in scores and name in row.params]
    if not rows:
        raise UserError(f"no trial of study {evidence.spec.name!r} has a value yet")
    rows.sort(key=lambda row: _in_order(row.params[name]))
    groups = grouped(evidence.spec.space[name], [row.params[name] for row in rows])
    members = [
        [row for row, group in zip(rows, groups, strict=True) if group == number]
        for number in sorted(set(groups))
    ]
    adjusted, needed = _adjusted(evidence, name, scores, members)
    at_end = "at the end, completed trials only"
    found = tuple(
        _group(evidence, name, own, scores, final, adjusted, place)
        for place, own in enumerate(members)
    )
    return Marginal(
        study=evidence.spec.name,
        name=name,
        metric=evidence.spec.objective.metric,
        where=at_end if progress is None else f"at {unit_at(progress, unit)}",
        groups=found,
        influence=influence_of(evidence, name, scores),
        span=_span(found, adjusted),
        needed=needed,
    )


def unit_at(progress: int, unit: str) -> str:
    """Return in words at which progress the scores are compared."""
    place = f"{progress} %" if unit == "%" else f"step {progress}"
    return f"{place}, which all trials reached"


def _span(
    groups: Sequence[Group], adjusted: Adjusted | None
) -> tuple[str, str, float, float] | None:
    if adjusted is None:
        return None
    worst, best = (groups[place].label for place in adjusted.ends)
    return best, worst, adjusted.span, adjusted.span_half


def _group(
    evidence: Evidence,
    name: str,
    own: Sequence[TrialRow],
    scores: Mapping[int, float],
    final: Mapping[int, float],
    adjusted: Adjusted | None,
    place: int,
) -> Group:
    sign = evidence.sign
    best = max if sign > 0 else min
    limits = limits_of(evidence.spec.objective, evidence.spec.task)
    values = [sign * scores[row.number] for row in own]
    ends = [sign * final[row.number] for row in own if row.number in final]
    settings = [row.params[name] for row in own]
    first, last = words.setting(settings[0]), words.setting(settings[-1])
    return Group(
        label=first if first == last else f"{first} to {last}",
        mean=t_interval(values).within(*limits),
        median=statistics.median(values),
        best=best(values),
        adjusted=None if adjusted is None else sign * adjusted.means[place],
        adjusted_half=None if adjusted is None else adjusted.halves[place],
        completed=len(ends),
        final=t_interval(ends).within(*limits) if ends else None,
        final_best=best(ends) if ends else None,
    )


def _in_order(value: Value) -> tuple[int, float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, float(value), "")
    return (1, 0.0, str(value))


def _adjusted(
    evidence: Evidence,
    name: str,
    scores: Mapping[int, float],
    members: Sequence[Sequence[TrialRow]],
) -> tuple[Adjusted | None, int]:
    """Return the groups' adjusted means, and how many trials they need.

    None of too few trials, or of one group (which needs 0).
    """
    rows = [row for own in members for row in own]
    if len(members) < 2:
        return None, 0
    groups = [place for place, own in enumerate(members) for _ in own]
    columns = [
        column
        for other in evidence.spec.space
        if other != name
        for column in _columns(evidence, other, [row.params.get(other, _ABSENT) for row in rows])
    ]
    covariates = np.array(columns, dtype=np.float64).reshape(len(columns), len(rows)).T
    found = adjusted_means(groups, covariates, [scores[row.number] for row in rows])
    return found, scores_needed(groups, covariates)


def _columns(evidence: Evidence, name: str, values: Sequence[Any]) -> list[list[float]]:
    """Return the settings ``values`` of a hyperparameter as numbers, a list a column.

    A choice is a column of zeros and ones. A range is its place, 0 to 1, and the square of that;
    0 where a trial does not have it (its condition did not hold), which a column of its own says.
    """
    parameter = evidence.spec.space[name]
    if parameter.values is not None:
        return [[float(value == choice) for value in values] for choice in parameter.values]
    places = [
        0.0 if value is _ABSENT else 2 * (place_in_range(parameter, value) or 0.0) - 1
        for value in values
    ]
    absent = [float(value is _ABSENT) for value in values]
    return [places, [place**2 for place in places], absent]


def marginal_cells(found: Marginal) -> Cells:
    """Return the groups as a table of text."""
    rows = tuple(
        (
            group.label,
            str(group.mean.n),
            words.plus_minus(group.mean),
            words.score(group.median),
            words.score(group.best),
            _adjusted_words(group),
            str(group.completed),
            words.plus_minus(group.final),
            words.score(group.final_best),
        )
        for group in found.groups
    )
    titles = (
        *(found.name, "n", "mean", "median", "best", "adjusted"),
        *("completed", "mean at end", "best at end"),
    )
    heading = f"{found.study}: {found.metric} by {found.name}, {found.where}"
    return Cells(heading, titles, rows)


def _adjusted_words(group: Group) -> str:
    if group.adjusted is None:
        return words.NOTHING
    return f"{words.score(group.adjusted)} ± {words.score(group.adjusted_half)}"


def marginal_words(found: Marginal) -> list[str]:
    """Return how to read the groups, and how much the hyperparameter says."""
    lines = []
    one = found.influence
    if one is not None:
        seen = "chance alone explains as much" if one.p >= 0.05 else "more than chance explains"
        lines.append(
            f"{found.name} explains {one.share:.0%} of the ranks of {one.n} trials, {seen} "
            f"(permutation p {one.p:.3f})."
        )
    if found.span is not None:
        best, worst, span, half = found.span
        told = "more" if span > half else "no more"
        lines.append(
            "adjusted: what the others explain is taken out, by least squares (Searle et al. "
            "1980; interval by HC3); the plain means mix in what the sampler chose along with it. "
            f"The best, {best}, is ahead of the worst, {worst}, by {words.score(span)} ± "
            f"{words.score(half)}: {told} than chance explains."
        )
    elif found.needed:
        has = sum(group.mean.n for group in found.groups)
        lines.append(
            f"adjusted: not known; to take out what the others explain needs {found.needed} "
            f"trials with a value there (it has {has})."
        )
    return lines


def marginal_records(found: Marginal) -> list[dict[str, Any]]:
    """Return a flat record a group."""
    return [
        {
            "value": group.label,
            "n": group.mean.n,
            "mean": group.mean.mean,
            "low": group.mean.low,
            "high": group.mean.high,
            "median": group.median,
            "best": group.best,
            "adjusted": group.adjusted,
            "adjusted_half": group.adjusted_half,
            "completed": group.completed,
            "final_mean": None if group.final is None else group.final.mean,
            "final_low": None if group.final is None else group.final.low,
            "final_high": None if group.final is None else group.final.high,
            "final_best": group.final_best,
        }
        for group in found.groups
    ]


def marginal_json(found: Marginal) -> dict[str, Any]:
    """Return the effect as plain values."""
    return {
        "study": found.study,
        "by": found.name,
        "metric": found.metric,
        "where": found.where,
        "influence": None if found.influence is None else found.influence._asdict(),
        "adjusted_span": None
        if found.span is None
        else dict(zip(("best", "worst", "difference", "half"), found.span, strict=True)),
        "groups": marginal_records(found),
    }
