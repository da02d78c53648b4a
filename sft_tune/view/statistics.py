"""Statistics of few, noisy scores: intervals, paired differences, chances, influence.

Pure functions of numbers; each names its source. Nothing here knows what a study is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
DRAWS = 20_000
"""Draws from a posterior: the third decimal of a chance is then still noise, the second not."""
PERMUTATIONS = 999
MANY = 1_000
"""Scores from which the permutation null is its limit, chi-squared."""

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean of ``n`` values, and where the true mean lies at `CONFIDENCE`.

    ``low``, ``high`` and ``deviation`` (of one value) are None where n is below 2: of one value
    nothing is known about the spread. An end may be cut off at what is possible (see `within`).
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    deviation: float | None

    @property
    def half(self) -> float | None:
        """Half of the interval's width; None where there is none, or an end of it is cut off."""
        if self.low is None or self.high is None:
            return None
        up, down = self.high - self.mean, self.mean - self.low
        return up if math.isclose(up, down, rel_tol=1e-6, abs_tol=1e-12) else None

    def within(self, low: float | None, high: float | None) -> Interval:
        """Return the interval without what lies beyond the values that a mean can have.

        The true mean lies between them, so that what is left holds it as often as the whole did.
        None is no limit.
        """
        if self.low is None or self.high is None:
            return self
        return self._replace(
            low=self.low if low is None else max(self.low, low),
            high=self.high if high is None else min(self.high, high),
        )

    def shifted_from(self, value: float) -> Interval:
        """Return the interval of ``value`` minus the mean, ``value`` being known exactly."""
        low = None if self.high is None else value - self.high
        high = None if self.low is None else value - self.low
        return Interval(value - self.mean, low, high, self.n, self.deviation)


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of ``values`` and its interval by Student's t.

    Exact for normal values however few (Student, Biometrika 6 (1), 1908).

    Raises:
        ValueError: when there is no value.
    """
    n = len(values)
    if not n:
        raise ValueError("an interval needs at least one value")
    mean = math.fsum(values) / n
    if n < 2:
        return Interval(mean, None, None, n, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile((1 + confidence) / 2, n - 1) * deviation / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, deviation)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    limits: tuple[float | None, float | None] = (None, None),
) -> Interval:
    """Return the interval of the mean of ``first - second``, pair by pair (see `t_interval`).

    What a seed does to both of a pair cancels out, so that the interval is narrower than that of
    two separate means. Values within ``limits`` are no further apart than these.

    Raises:
        ValueError: when the two are not of one length, or are empty.
    """
    found = t_interval([a - b for a, b in zip(first, second, strict=True)])
    low, high = limits
    if low is None or high is None:
        return found
    return found.within(low - high, high - low)


def t_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t with ``freedom`` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def chance_of_lead(difference: Interval) -> float | None:
    """Return the probability that the true mean difference is above 0; None of a single pair.

    The posterior of the mean of paired differences under the reference prior is Student's t
    (Benavoli, Corani, Demsar, Zaffalon, Journal of Machine Learning Research 18 (77), 2017, the
    Bayesian t-test; its correlation is 0 here: fresh seeds share no training folds).
    """
    if difference.deviation is None:
        return None
    if difference.deviation == 0:
        return 0.5 if difference.mean == 0 else float(difference.mean > 0)
    from scipy.special import stdtr

    scale = difference.deviation / math.sqrt(difference.n)
    return float(stdtr(difference.n - 1, difference.mean / scale))


def chances_of_best(
    samples: Sequence[Mapping[int, float]], *, maximize: bool, draws: int = DRAWS, seed: int = 0
) -> list[float] | None:
    """Return for each of ``samples`` (values by seed) how likely its true mean is the best.

    The means are drawn together, and the share of draws in which one is the best is its chance.
    Over the same n seeds the draws are Student's t around the samples' means with their
    covariance and n - 1 degrees of freedom, the posterior under the prior |covariance|^-k of k
    samples (of the family of Geisser and Cornfield, Journal of the Royal Statistical Society B
    25 (2), 1963). Each mean is then what it is alone under the reference prior (Gelman et al.,
    Bayesian Data Analysis, 3rd edition, section 3.2) and each difference what it is of pairs (see
    `chance_of_lead`), so that of two the chance is the same by either. A seed that only some
    have counts for these. None where some sample has fewer than two values.
    """
    if not samples or any(len(values) < 2 for values in samples):
        return None
    from scipy.special import chdtri

    random = np.random.default_rng(seed)
    shocks = {key: random.standard_normal(draws) for values in samples for key in values}
    luck = random.random(draws)
    means = np.empty((len(samples), draws))
    for row, values in enumerate(samples):
        n, mean = len(values), math.fsum(values.values()) / len(values)
        moved = np.sum([(value - mean) * shocks[key] for key, value in values.items()], axis=0)
        variance = chdtri(n - 1, luck) / (n - 1)
        means[row] = mean + moved / np.sqrt(n * (n - 1) * variance)
    signed = means if maximize else -means
    best = signed == signed.max(axis=0)
    # Equal means, of which there is no best, share the draw.
    return [float(share) for share in (best / best.sum(axis=0)).mean(axis=1)]


def expected_best(values: Sequence[float], count: int, *, maximize: bool) -> float:
    """Return the mean best of ``count`` of ``values``, drawn without putting back.

    The values were drawn in an order that says nothing (random search), so any other order was
    as likely: the mean over all orders says what ``count`` trials would have found, where the
    one order that happened says what they did find. After Dodge, Gururangan, Card, Schwartz,
    Smith, EMNLP 2019 ("Show Your Work"), who draw with putting back.

    Raises:
        ValueError: when ``count`` is not from 1 to the number of values.
    """
    n, ranked = len(values), _ranked(values, count, maximize=maximize)
    # The value at rank i (from 0, the worst) is the best in C(i, count - 1) of C(n, count) draws;
    # downwards each share is the one before by (i - count + 1) / i, without huge numbers.
    share, parts = count / n, []
    for rank in range(n - 1, -1, -1):
        parts.append(share * ranked[rank])
        share *= (rank - count + 1) / rank if rank else 0.0
        if not share:
            break
    return math.fsum(parts)


def _ranked(values: Sequence[float], count: int, *, maximize: bool) -> list[float]:
    """Return ``values``, the worst first; raise where ``count`` of them cannot be drawn."""
    if not 1 <= count <= len(values):
        raise ValueError(f"the best of {count} of {len(values)} values is not defined")
    return sorted(values, reverse=not maximize)


def best_of_orders(
    values: Sequence[float], count: int, *, maximize: bool, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return between which values the best of ``count`` of ``values`` lies in most of all orders.

    Exact: the best of ``count`` drawn without putting back is no better than the i-th from the
    bottom with the probability C(i, count) / C(n, count) (David and Nagaraja, Order Statistics,
    3rd edition, section 3.7). As many orders lie beyond one end as beyond the other, at most.

    Raises:
        ValueError: when ``count`` is not from 1 to the number of values.
    """
    n, ranked = len(values), _ranked(values, count, maximize=maximize)

    def quantile(probability: float) -> float:
        """Return the least value that the best does not exceed with this probability."""
        place, reached = n, 1.0
        while place > 1 and (below := reached * (place - count) / place) >= probability:
            place, reached = place - 1, below
        return ranked[place - 1]

    ends = quantile((1 - confidence) / 2), quantile((1 + confidence) / 2)
    return min(ends), max(ends)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, ties at their mean rank; None where one is constant."""
    if len(first) < 3:
        return None
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float((a * a).sum() * (b * b).sum()))
    return None if scale == 0 else float((a * b).sum() / scale)


def ranks(values: Sequence[float]) -> Floats:
    """Return the ranks of ``values`` from 1; equal ones share the mean of their places."""
    _, inverse, counts = np.unique(
        np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True
    )
    ends = np.cumsum(counts)
    found: Floats = (ends - (counts - 1) / 2)[inverse]
    return found


class Influence(NamedTuple):
    """How much of the ranks of scores a grouping explains.

    Attributes:
        share: of the variance of the ranks, 0 to 1, less what chance would explain; at least 0.
        p: share of random regroupings that explain as much: of noise, uniform on 0 to 1.
        n: how many scores.
    """

    share: float
    p: float
    n: int


def influence(
    groups: Sequence[int], scores: Sequence[float], *, seed: int = 0, rounds: int = PERMUTATIONS
) -> Influence | None:
    """Return how much the ``groups`` say about the ``scores``, against a permutation null.

    The statistic is the between-group share of the variance of the ranks (Kruskal and Wallis,
    Journal of the American Statistical Association 47 (260), 1952); the same over ``rounds``
    permutations of the scores is what noise gives. From `MANY` scores on it is taken from their
    limit, a chi-squared of one less than the groups. None where there is but one group, or all
    scores are equal.
    """
    labels, codes = np.unique(np.asarray(groups), return_inverse=True)
    ranked = ranks(scores) if len(scores) else np.empty(0)
    if len(labels) < 2 or not len(ranked) or float(np.ptp(ranked)) == 0.0:
        return None
    centred = ranked - ranked.mean()
    whole = float((centred**2).sum())
    member = (codes[None, :] == np.arange(len(labels))[:, None]).astype(np.float64)
    sizes = member.sum(axis=1)

    def explained(rows: Floats) -> Floats:
        sums = rows @ member.T
        found: Floats = (sums**2 / sizes).sum(axis=1) / whole
        return found

    observed = float(explained(centred[None, :])[0])
    n, freedom = len(ranked), len(labels) - 1
    if n >= MANY:
        from scipy.special import chdtrc

        chance = freedom / (n - 1)
        share = max(0.0, (observed - chance) / (1 - chance))
        return Influence(share, float(chdtrc(freedom, (n - 1) * observed)), n)
    random = np.random.default_rng(seed)
    shuffled = random.permuted(np.tile(centred, (rounds, 1)), axis=1)
    null = explained(shuffled)
    as_much = int((null >= observed - 1e-12).sum())
    by_chance = float(null.mean())
    share = max(0.0, (observed - by_chance) / (1 - by_chance)) if by_chance < 1 else 0.0
    return Influence(share, (as_much + 1) / (rounds + 1), len(ranked))


def bins(values: Sequence[float], count: int) -> list[int]:
    """Return for each of ``values`` its place among ``count`` groups of about equal size.

    Equal values are in one group, so there may be fewer groups.
    """
    places = ranks(values)
    return [min(count - 1, int((place - 0.5) * count / len(places))) for place in places]
