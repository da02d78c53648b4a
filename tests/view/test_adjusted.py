"""Adjusted means of groups whose true difference is set here."""

from __future__ import annotations

import numpy as np
import pytest

from sft_tune.view.adjusted import adjusted_means

EFFECT = 0.05


def confounded(n: int, seed: int) -> tuple[list[int], np.ndarray, list[float]]:
    """Group 1 is better by `EFFECT`, and mostly tried where a covariate is bad.

    Where the covariate is large there is three times the noise.
    """
    random = np.random.default_rng(seed)
    x = random.random((n, 3))
    groups = (random.random(n) < np.where(x[:, 0] > 0.5, 0.85, 0.15)).astype(int)
    scores = 0.8 - 0.3 * x[:, 0] ** 2 + EFFECT * groups
    scores += random.normal(0, 0.02 * (1 + 2 * x[:, 0]))
    return list(groups), np.column_stack([x, x**2]), list(scores)


@pytest.mark.parametrize("n", [30, 60])
def test_95_in_100_intervals_hold_the_true_difference(n: int) -> None:
    held, found_means, plain_means, rounds = 0, [], [], 500
    for seed in range(rounds):
        groups, covariates, scores = confounded(n, seed)
        found = adjusted_means(groups, covariates, scores)
        assert found is not None
        apart = found.means[1] - found.means[0]
        held += abs(apart - EFFECT) <= found.span_half
        found_means.append(apart)
        member = np.array(groups) == 1
        plain_means.append(np.mean(np.array(scores)[member]) - np.mean(np.array(scores)[~member]))
    assert 0.94 <= held / rounds <= 0.99
    assert np.mean(found_means) == pytest.approx(EFFECT, abs=0.004)
    assert np.mean(plain_means) < 0  # what was chosen along with it turns the order around


def test_of_equal_groups_the_furthest_two_are_rarely_said_to_differ() -> None:
    rounds, said = 400, 0
    for seed in range(rounds):
        random = np.random.default_rng(seed)
        groups = [place % 4 for place in range(40)]
        covariates = random.random((40, 2))
        found = adjusted_means(groups, covariates, list(random.normal(size=40)))
        assert found is not None
        said += found.span > found.span_half
    assert said / rounds <= 0.06


def test_what_one_covariate_says_twice_counts_once() -> None:
    groups, covariates, scores = confounded(40, 0)
    once = adjusted_means(groups, covariates, scores)
    twice = adjusted_means(groups, np.column_stack([covariates, covariates, groups]), scores)
    assert once is not None and twice is not None
    assert twice.means == pytest.approx(once.means) and twice.halves == pytest.approx(once.halves)


def test_of_few_scores_nothing_is_adjusted() -> None:
    groups, covariates, scores = confounded(17, 0)
    assert adjusted_means(groups, covariates, scores) is None
