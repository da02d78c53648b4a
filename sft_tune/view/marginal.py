"""What one hyperparameter does to the objective: its values, or parts of its range, compared."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_tune.errors import UserError
from sft_tune.spec.space import Value
from sft_tune.store.rows import TrialRow
from sft_tune.view import words
from sft_tune.view.contest_tables import Cells
from sft_tune.view.evidence import (
    Evidence,
    common_progress,
    final_scores,
    grouped,
    influence_of,
    scores_at,
)
from sft_tune.view.finalists import plus_minus
from sft_tune.view.statistics import Influence, Interval, t_interval

FEWEST = 20
"""Trials below which a model of them adjusts nothing."""

TREES = 200


class Group(NamedTuple):
    """The trials with one value, or with those of one part of the range.

    Attributes:
        label: the value, or the least and the greatest of the trials.
        mean: of their scores, with the interval of Student's t.
        median: of their scores.
        best: of their scores.
        adjusted: mean that all trials would have with this value, by the model (see `marginal`);
            None: too few trials for one.
        completed: how many ran to their end.
        final: mean of those at their end; None: none did.
        final_best: the best of those.
    """

    label: str
    mean: Interval
    median: float
    best: float
    adjusted: float | None
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
    """

    study: str
    name: str
    metric: str
    where: str
    groups: tuple[Group, ...]
    influence: Influence | None


def marginal(evidence: Evidence, name: str, *, unit: str = "%") -> Marginal:
    """Return the marginal effect of the hyperparameter ``name`` on the objective.

    Scores are the best up to the furthest progress that all trials have reached: those that the
    pruner cut count there like all others (a value at the end would be of survivors only). Where
    nothing was reported on the way, the completed trials are compared at their end.

    A sampler that learns chooses good values of the others together with good values of this one,
    so that plain means mix their effects. The adjusted mean is the partial dependence (Friedman,
    Annals of Statistics 29 (5), 2001) of a random forest over all hyperparameters: its mean
    prediction when this one is set to the group's value in every trial and the others stay. It is
    of a model, shrunk towards no effect, and without an interval.

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
            f"--by: study {evidence.spec.name!r} does not search {name!r}; it searches {known}"
        )
    progress = common_progress(evidence)
    final = final_scores(evidence)
    scores = final if progress is None else scores_at(evidence, progress)
    rows = [row for row in evidence.rows if row.number in scores and name in row.params]
    if not rows:
        raise UserError(f"--by: no trial of study {evidence.spec.name!r} has a value yet")
    rows.sort(key=lambda row: _in_order(row.params[name]))
    groups = grouped(evidence.spec.space[name], [row.params[name] for row in rows])
    members = [
        [row for row, group in zip(rows, groups, strict=True) if group == number]
        for number in sorted(set(groups))
    ]
    adjusted = _adjusted(evidence, name, scores, members)
    at_end = "at the end, completed trials only"
    return Marginal(
        study=evidence.spec.name,
        name=name,
        metric=evidence.spec.objective.metric,
        where=at_end if progress is None else f"at {progress} {unit}, which all trials reached",
        groups=tuple(
            _group(evidence, name, own, scores, final, level)
            for own, level in zip(members, adjusted, strict=True)
        ),
        influence=influence_of(evidence, name, scores),
    )


def _group(
    evidence: Evidence,
    name: str,
    own: Sequence[TrialRow],
    scores: Mapping[int, float],
    final: Mapping[int, float],
    adjusted: float | None,
) -> Group:
    sign = evidence.sign
    best = max if sign > 0 else min
    values = [sign * scores[row.number] for row in own]
    ends = [sign * final[row.number] for row in own if row.number in final]
    settings = [row.params[name] for row in own]
    first, last = words.setting(settings[0]), words.setting(settings[-1])
    return Group(
        label=first if first == last else f"{first} to {last}",
        mean=t_interval(values),
        median=statistics.median(values),
        best=best(values),
        adjusted=None if adjusted is None else sign * adjusted,
        completed=len(ends),
        final=t_interval(ends) if ends else None,
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
) -> list[float | None]:
    """Return the partial dependence at the values of each group; None of too few trials."""
    rows = [row for row in evidence.rows if row.number in scores]
    if len(rows) < FEWEST or len(members) < 2:
        return [None] * len(members)
    from sklearn.ensemble import RandomForestRegressor

    params = [row.params for row in rows]
    table, columns = _encoded(evidence, params)
    forest = RandomForestRegressor(TREES, min_samples_leaf=2, random_state=0, n_jobs=1)
    forest.fit(table, [scores[row.number] for row in rows])
    found: list[float | None] = []
    places = columns[name]
    for own in members:
        chosen, _ = _encoded(evidence, [row.params for row in own])
        # The middle trial of the group stands for its values.
        changed = table.copy()
        changed[:, places] = chosen[len(own) // 2, places]
        found.append(float(forest.predict(changed).mean()))
    return found


def _encoded(
    evidence: Evidence, params: Sequence[Mapping[str, Value]]
) -> tuple[NDArray[np.float64], dict[str, list[int]]]:
    """Return settings as numbers [trials, columns], and the columns of each hyperparameter.

    A choice is a column of zeros and ones; a number that a trial does not have (its condition
    did not hold) is -1, beside the logarithm or share of the range that others have.
    """
    columns: list[list[float]] = []
    places: dict[str, list[int]] = {}
    for name, parameter in evidence.spec.space.items():
        values = [one.get(name) for one in params]
        if parameter.values is not None:
            made = [[float(v == choice) for v in values] for choice in parameter.values]
        else:
            low, high = parameter.bounds()
            made = [[_place(value, low, high, parameter.log) for value in values]]
        places[name] = list(range(len(columns), len(columns) + len(made)))
        columns += made
    return np.array(columns, dtype=np.float64).T, places


def _place(value: Value, low: float, high: float, log: bool) -> float:
    if not isinstance(value, int | float):
        return -1.0
    if log:
        return float(np.log(value / low))
    return (value - low) / ((high - low) or 1.0)


def marginal_cells(found: Marginal) -> Cells:
    """Return the groups as a table of text."""
    rows = tuple(
        (
            group.label,
            str(group.mean.n),
            plus_minus(group.mean),
            words.score(group.median),
            words.score(group.best),
            words.score(group.adjusted),
            str(group.completed),
            plus_minus(group.final),
            words.score(group.final_best),
        )
        for group in found.groups
    )
    titles = (
        *(found.name, "n", "mean", "median", "best", "adjusted"),
        *("completed", "mean at end", "best"),
    )
    heading = f"{found.study}: {found.metric} by {found.name}, {found.where}"
    return Cells(heading, titles, rows)


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
    if found.groups[0].adjusted is not None:
        lines.append(
            "adjusted: mean of all trials with only this setting changed, by a random forest "
            "(Friedman 2001); the plain means mix in what the sampler chose along with it."
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
        "groups": marginal_records(found),
    }
