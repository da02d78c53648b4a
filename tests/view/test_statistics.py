"""Statistics against known answers, and against simulation where the truth is set here."""

from __future__ import annotations

import numpy as np
import pytest

from sft_tune.view.statistics import (
    chance_of_lead,
    chances_of_best,
    influence,
    paired_difference,
    rank_correlation,
    t_interval,
)


def test_the_interval_of_five_values_is_students() -> None:
    found = t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # t(0.975, 4) = 2.776445, the deviation is sqrt(2.5).
    assert found.mean == 3.0
    assert found.half == pytest.approx(2.776445 * (2.5 / 5) ** 0.5, rel=1e-6)


def test_of_one_value_nothing_is_said_about_the_spread() -> None:
    found = t_interval([0.5])
    assert (found.mean, found.low, found.high, found.half) == (0.5, None, None, None)
    with pytest.raises(ValueError):
        t_interval([])


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_95_in_100_intervals_hold_the_true_mean(seeds: int) -> None:
    random = np.random.default_rng(seeds)
    samples = random.normal(0.8, 0.01, size=(4000, seeds))
    found = [t_interval(list(row)) for row in samples]
    held = sum((one.low or 1) <= 0.8 <= (one.high or 0) for one in found)
    # Three standard deviations of a share of 4000 are 0.0103.
    assert held / 4000 == pytest.approx(0.95, abs=0.0104)


def test_what_a_seed_does_to_both_cancels_out() -> None:
    random = np.random.default_rng(0)
    seed = random.normal(0, 0.1, 10)
    first, second = 0.80 + seed, 0.79 + seed + random.normal(0, 0.001, 10)
    paired = paired_difference(list(first), list(second))
    assert (paired.low or 0) > 0 and paired.mean == pytest.approx(0.01, abs=0.002)
    assert paired.half is not None and paired.half < 0.002
    alone = t_interval(list(first)).half
    assert alone is not None and alone > 0.02


def test_the_chance_that_the_leader_is_best_comes_true_as_often_as_it_says() -> None:
    """Of true means that the prior spreads widely, 80 % said is 80 % true."""
    random = np.random.default_rng(1)
    said, true = [], []
    for _ in range(1500):
        means = random.uniform(0, 3, size=3)
        samples = [dict(enumerate(random.normal(mean, 1.0, 8))) for mean in means]
        chances = chances_of_best(samples, maximize=True, draws=500)
        assert chances is not None
        leader = int(np.argmax([np.mean(list(values.values())) for values in samples]))
        said.append(chances[leader])
        true.append(int(np.argmax(means)) == leader)
    for low, high in [(0.5, 0.7), (0.7, 0.9), (0.9, 1.01)]:
        inside = [i for i, chance in enumerate(said) if low <= chance < high]
        assert len(inside) > 100
        told = float(np.mean([said[i] for i in inside]))
        came = float(np.mean([true[i] for i in inside]))
        assert came == pytest.approx(told, abs=3.5 * (0.25 / len(inside)) ** 0.5)


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_equal_samples_share_the_chance_and_far_ones_are_certain() -> None:
    same = chances_of_best([by_seed(1.0, 2.0, 3.0)] * 2, maximize=True)
    assert same is not None and same == pytest.approx([0.5, 0.5], abs=0.02)
    apart = [by_seed(0.0, 0.01, 0.02), by_seed(9.0, 9.01, 9.02)]
    assert chances_of_best(apart, maximize=True) == pytest.approx([0.0, 1.0], abs=0.001)
    assert chances_of_best(apart, maximize=False) == pytest.approx([1.0, 0.0], abs=0.001)
    assert chances_of_best([by_seed(1.0), by_seed(2.0, 3.0)], maximize=True) is None


def test_of_two_the_chance_of_the_best_is_that_of_a_lead_seed_by_seed() -> None:
    """`confirm` once said 90 % by the one and 97 % by the other, of the same question."""
    for first, second in (
        ((0.94, 0.91, 0.93), (0.91, 0.87, 0.90)),  # what a seed does to both is most of it
        ((0.94, 0.91), (0.91, 0.90)),
        ((0.91, 0.92, 0.90, 0.94), (0.92, 0.90, 0.91, 0.90)),  # nothing in common
    ):
        lead = chance_of_lead(paired_difference(first, second))
        found = chances_of_best([by_seed(*first), by_seed(*second)], maximize=True)
        assert found is not None and found[0] == pytest.approx(lead, abs=0.01)


def test_seeds_that_only_some_have_count_for_these() -> None:
    few = {0: 0.80, 1: 0.82}
    many = {**few, **{seed: 0.81 + seed % 2 / 100 for seed in range(2, 12)}}
    rest = by_seed(0.78, 0.80)
    with_few = chances_of_best([few, rest], maximize=True)
    with_many = chances_of_best([many, rest], maximize=True)
    assert with_few is not None and with_many is not None and with_few != with_many


def test_an_interval_ends_at_the_values_that_are_possible() -> None:
    wide = t_interval([0.2, 0.9])
    assert wide.low is not None and wide.low < 0
    cut = wide.within(0.0, 1.0)
    assert (cut.mean, cut.low, cut.high, cut.half) == (wide.mean, 0.0, 1.0, None)
    assert t_interval([0.5, 0.51]).within(0.0, 1.0) == t_interval([0.5, 0.51])
    assert wide.within(0.0, None).high == wide.high
    assert t_interval([0.5]).within(0.0, 1.0).low is None
    apart = paired_difference([0.9, 0.2], [0.1, 0.3], limits=(0.0, 1.0))
    assert (apart.low, apart.high) == (-1.0, 1.0)


def test_the_chance_of_a_lead_is_students() -> None:
    # Mean 1, deviation 1, n = 2: t = sqrt(2) at 1 degree of freedom, 1/2 + atan(t) / pi.
    low, high = 1 - 0.5**0.5, 1 + 0.5**0.5
    assert chance_of_lead(t_interval([low, high])) == pytest.approx(
        0.5 + np.arctan(2**0.5) / np.pi, abs=1e-6
    )
    assert chance_of_lead(t_interval([0.0, 0.0])) == 0.5
    assert chance_of_lead(t_interval([1.0])) is None


def test_influence_of_noise_is_uniform_and_of_signal_sure() -> None:
    random = np.random.default_rng(2)
    ps = []
    for round_ in range(200):
        groups, scores = list(random.integers(0, 4, 40)), list(random.normal(size=40))
        found = influence(groups, scores, seed=round_, rounds=199)
        assert found is not None
        ps.append(found.p)
    assert np.mean(np.array(ps) < 0.1) == pytest.approx(0.1, abs=0.07)
    sure = influence([0] * 20 + [1] * 20, [*range(20), *range(100, 120)])
    assert sure is not None and sure.p < 0.01 and sure.share > 0.7
    assert influence([0] * 10, list(range(10))) is None


def test_the_limit_of_the_permutation_null_agrees_with_it() -> None:
    """900 scores are permuted, 1,000 and more are not: of noise both say the same."""
    random = np.random.default_rng(3)
    limits = []
    for _ in range(300):
        found = influence(list(random.integers(0, 4, 1000)), list(random.normal(size=1000)))
        assert found is not None
        limits.append(found.p)
    assert np.mean(np.array(limits) < 0.1) == pytest.approx(0.1, abs=0.055)
    assert np.mean(limits) == pytest.approx(0.5, abs=0.055)
    groups = list(random.integers(0, 4, 1000))
    scores = [
        group / 10 + noise for group, noise in zip(groups, random.normal(size=1000), strict=True)
    ]
    many, few = influence(groups, scores), influence(groups[:900], scores[:900])
    assert many is not None and few is not None
    assert many.p < 0.01 and few.p < 0.01 and many.share == pytest.approx(few.share, abs=0.02)


def test_the_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.820783, abs=1e-6)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is None
