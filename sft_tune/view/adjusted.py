"""Means of groups, adjusted for what else differs between them; pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_tune.view.statistics import CONFIDENCE, t_quantile

SPARE = 10
"""Scores beyond the coefficients that a fit needs."""

Floats = NDArray[np.float64]


class Adjusted(NamedTuple):
    """Adjusted means of groups.

    Attributes:
        means: what each group's mean would be if the covariates were the same in all.
        halves: half of the 95 % interval of each.
        ends: places of the lowest and of the highest mean.
        span: the highest less the lowest.
        span_half: half of the 95 % interval of that difference, all pairs considered
            (Bonferroni): the two were chosen because they are apart.
    """

    means: tuple[float, ...]
    halves: tuple[float, ...]
    ends: tuple[int, int]
    span: float
    span_half: float


def adjusted_means(
    groups: Sequence[int], covariates: Floats, scores: Sequence[float]
) -> Adjusted | None:
    """Return the adjusted means of the groups 0, 1, ...; None of too few scores for a fit.

    Least squares of the scores on the groups and the covariates, read off at the mean of the
    covariates (Searle, Speed, Milliken, The American Statistician 34 (4), 1980: population
    marginal means). Effects that add up are met on average; one that depends on another
    hyperparameter is met at the mean of that. Intervals are Student's t on the covariance HC3,
    which does not ask for the same noise everywhere (Long, Ervin, The American Statistician
    54 (3), 2000).

    Args:
        groups: of each score, each number up to the last at least once.
        covariates: of each score [scores, covariates]; what others say already is left out.
        scores: one a trial.
    """
    count = max(groups) + 1
    design = _design(groups, covariates)
    n, columns = design.shape
    if n < columns + SPARE:
        return None
    y = np.asarray(scores, dtype=np.float64)
    q, r = np.linalg.qr(design)
    found = np.linalg.solve(r, q.T @ y)
    leverage = np.minimum((q**2).sum(axis=1), 1 - 1e-9)
    pull = np.linalg.solve(r, (q * ((y - design @ found) / (1 - leverage))[:, None]).T)
    covariance = (pull @ pull.T)[:count, :count]
    means = found[:count]
    low, high = int(means.argmin()), int(means.argmax())
    apart = covariance[low, low] + covariance[high, high] - 2 * covariance[low, high]
    t = t_quantile((1 + CONFIDENCE) / 2, n - columns)
    pairs = max(1, count * (count - 1) // 2)
    t_of_pairs = t_quantile(1 - (1 - CONFIDENCE) / 2 / pairs, n - columns)
    return Adjusted(
        tuple(float(mean) for mean in means),
        tuple(t * math.sqrt(covariance[place, place]) for place in range(count)),
        (low, high),
        float(means[high] - means[low]),
        t_of_pairs * math.sqrt(max(0.0, float(apart))),
    )


def scores_needed(groups: Sequence[int], covariates: Floats) -> int:
    """Return how many scores `adjusted_means` needs for these groups and covariates."""
    return int(_design(groups, covariates).shape[1]) + SPARE


def _design(groups: Sequence[int], covariates: Floats) -> Floats:
    member = np.asarray(groups)
    one_hot = (member[:, None] == np.arange(max(groups) + 1)).astype(np.float64)
    return _independent(one_hot, covariates - covariates.mean(axis=0))


def _independent(first: Floats, more: Floats) -> Floats:
    """Return the columns of ``first``, and those of ``more`` that the ones before do not make."""
    kept = [column for column in first.T]
    basis = [column / np.linalg.norm(column) for column in kept]
    for column in more.T:
        rest = column.copy()
        for known in (*basis, *basis):  # Twice: once is not enough in floating point.
            rest -= known * float(known @ rest)
        size = float(np.linalg.norm(rest))
        if size > 1e-6 * max(1e-300, float(np.linalg.norm(column))):
            kept.append(column)
            basis.append(rest / size)
    return np.column_stack(kept)
