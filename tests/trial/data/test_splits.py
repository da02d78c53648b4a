from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_tune.trial.data.splits import (
    apportion,
    split_train,
    take_at_most,
    take_fold,
    take_fraction,
)

targets = st.lists(st.integers(0, 4), min_size=1, max_size=80).map(
    lambda values: np.array(values, dtype=np.int64)
)


@given(targets, st.floats(0.01, 0.99), st.integers(0, 2**70))
def test_a_fraction_leaves_some_of_each_class_on_both_sides(y, fraction, seed):
    taken = take_fraction(y, fraction, seed, "x")
    counts, inside = np.bincount(y), np.bincount(y[taken], minlength=y.max() + 1)
    assert len(set(taken.tolist())) == len(taken)
    assert (np.diff(taken) > 0).all()
    for total, part in zip(counts, inside, strict=True):
        if total >= 2:
            assert 1 <= part <= total - 1
        else:
            assert part == 0


@given(st.lists(st.integers(20, 60), min_size=1, max_size=5), st.floats(0.1, 0.9))
def test_a_fraction_is_stratified_to_within_one_example(sizes, fraction):
    y = np.repeat(np.arange(len(sizes)), sizes)
    taken = take_fraction(y, fraction, 3, "x")
    assert len(taken) == round(fraction * len(y))
    exact = len(taken) * np.array(sizes) / len(y)
    assert (np.abs(np.bincount(y[taken], minlength=len(sizes)) - exact) < 1).all()


@given(targets, st.integers(1, 90), st.integers(0, 9))
def test_a_limit_is_kept_and_keeps_every_class_while_there_is_room(y, limit, seed):
    taken = take_at_most(y, limit, seed, "x")
    classes = len(np.unique(y))
    assert len(taken) == min(limit, len(y))
    if limit >= classes:
        assert len(np.unique(y[taken])) == classes


def test_a_limit_keeps_a_rare_class():
    y = np.repeat([0, 1], [50, 1])
    assert np.bincount(y[take_at_most(y, 3, 0, "x")]).tolist() == [2, 1]


@given(targets, st.floats(0.05, 0.6), st.floats(0, 0.6), st.integers(0, 9))
def test_the_parts_of_train_are_disjoint_and_complete(y, validation, test, seed):
    parts = split_train(y, validation_fraction=validation, test_fraction=test, seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(y)))


def test_without_fractions_everything_stays_in_train():
    parts = split_train(np.array([0, 1, 0]), validation_fraction=0, test_fraction=0, seed=0)
    assert [len(part) for part in parts] == [3, 0, 0]


def test_splits_never_change_between_releases():
    y = np.arange(20) % 3
    parts = split_train(y, validation_fraction=0.25, test_fraction=0.2, seed=7)
    assert parts.test.tolist() == [3, 5, 9, 10]
    assert parts.validation.tolist() == [1, 4, 6, 11]


def test_another_seed_and_another_purpose_are_other_choices():
    y = np.zeros(100, dtype=np.int64)
    choices = [
        take_fraction(y, 0.5, seed, purpose).tolist() for seed in (0, 1) for purpose in ("a", "b")
    ]
    assert len({tuple(choice) for choice in choices}) == 4


@pytest.mark.parametrize(
    ("counts", "total", "low", "high", "seats"),
    [
        ([50, 30, 20], 10, [0, 0, 0], [50, 30, 20], [5, 3, 2]),
        ([10, 10, 10], 10, [0, 0, 0], [10, 10, 10], [4, 3, 3]),  # ties go to the first
        ([97, 2, 1], 10, [1, 1, 1], [97, 2, 1], [8, 1, 1]),
        ([5, 5], 8, [0, 0], [3, 3], [3, 3]),  # the bounds win over the total
        ([1, 1, 1], 1, [1, 1, 1], [1, 1, 1], [1, 1, 1]),
    ],
)
def test_seats_by_largest_remainder(counts, total, low, high, seats):
    arrays = (np.array(values, dtype=np.int64) for values in (counts, low, high))
    c, lo, hi = arrays
    assert apportion(c, total, lo, hi).tolist() == seats


@given(targets, st.integers(2, 7), st.integers(0, 9))
def test_folds_share_out_all_examples_and_each_class_evenly(y, folds, seed):
    taken = [take_fold(y, folds, fold, seed) for fold in range(folds)]
    assert sorted(np.concatenate(taken).tolist()) == list(range(len(y)))
    sizes = [len(rows) for rows in taken]
    assert max(sizes) - min(sizes) <= 1
    counts = np.array([np.bincount(y[rows], minlength=5) for rows in taken])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()


def test_a_fold_is_validation_and_test_is_none_of_it():
    y = np.repeat([0, 1], 30)
    parts = [
        split_train(y, validation_fraction=0.2, test_fraction=0.25, seed=1, folds=3, fold=fold)
        for fold in range(3)
    ]
    assert {tuple(part.test) for part in parts} == {tuple(parts[0].test)}
    assert [len(part.validation) for part in parts] == [15, 15, 15]
    everything = np.concatenate([part.validation for part in parts] + [parts[0].test])
    assert sorted(everything.tolist()) == list(range(60))
    for part in parts:
        assert not set(part.train) & (set(part.validation) | set(part.test))
