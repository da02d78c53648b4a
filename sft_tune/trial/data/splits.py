"""Stratified splits and limits, the same on every machine."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def apportion(counts: Indices, total: int, low: Indices, high: Indices) -> Indices:
    """Share ``total`` seats among classes in proportion to ``counts`` (largest remainder).

    Hare's quota: each class gets the whole part of ``total * count / sum(counts)``, the seats
    that are left go to the largest remainders; ties go to the first class.

    Args:
        counts: size of each class [k].
        total: seats to give.
        low: least seats of each class [k]; may make the sum exceed ``total``.
        high: most seats of each class [k]; may keep the sum below ``total``.

    Returns:
        Seats of each class [k].
    """
    quota = total * counts / max(int(counts.sum()), 1)
    seats = np.clip(np.floor(quota).astype(np.int64), low, high)
    while seats.sum() < total and (open_ := np.flatnonzero(seats < high)).size:
        seats[open_[np.argmax((quota - seats)[open_])]] += 1
    while seats.sum() > total and (open_ := np.flatnonzero(seats > low)).size:
        seats[open_[np.argmin((quota - seats)[open_])]] -= 1
    return seats


def _pick(targets: Indices, seats: Indices, seed: int, purpose: str) -> Indices:
    """Return the rows, ascending, of ``seats[c]`` random examples of each class ``c``."""
    order = _order(len(targets), seed, purpose)
    shuffled = targets[order]
    chosen = [order[np.flatnonzero(shuffled == c)[:n]] for c, n in enumerate(seats)]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, dtype=np.int64)


def _order(count: int, seed: int, purpose: str) -> Indices:
    """Return the numbers below ``count`` in random order."""
    state = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    # RandomState and not a Generator: NumPy promises never to change its stream (NEP 19).
    return np.random.RandomState(int.from_bytes(state[:4], "big")).permutation(count)


def take_fraction(targets: Indices, fraction: float, seed: int, purpose: str) -> Indices:
    """Choose a stratified share of examples, leaving some of every class.

    A class of two examples or more has at least one on both sides, a single one stays.

    Args:
        targets: class of each example [n].
        fraction: share to take, in (0, 1).
        seed: seed of the choice.
        purpose: what it is for; another purpose is another choice of the same seed.

    Returns:
        Rows taken, ascending.
    """
    counts = np.bincount(targets)
    some = (counts >= 2).astype(np.int64)
    seats = apportion(counts, round(fraction * len(targets)), some, np.maximum(counts - 1, 0))
    return _pick(targets, seats, seed, purpose)


def take_at_most(targets: Indices, limit: int | None, seed: int, purpose: str) -> Indices:
    """Choose at most ``limit`` examples, stratified; of every class one, where there is room.

    Returns:
        Rows taken, ascending.
    """
    if limit is None or limit >= len(targets):
        return np.arange(len(targets))
    counts = np.bincount(targets)
    room = limit >= np.count_nonzero(counts)
    low = np.minimum(counts, 1) if room else np.zeros_like(counts)
    return _pick(targets, apportion(counts, limit, low, counts), seed, purpose)


def take_fold(targets: Indices, folds: int, fold: int, seed: int) -> Indices:
    """Choose the examples of one fold of k-fold cross-validation, stratified.

    Every example is in one fold. Of each class each fold has as many as any other, or one more;
    so it has of the whole.

    Args:
        targets: class of each example [n].
        folds: number of folds.
        fold: the one that is chosen, from 0.
        seed: seed of the choice.

    Returns:
        Rows taken, ascending.
    """
    shuffled = _order(len(targets), seed, "folds")
    by_class = shuffled[np.argsort(targets[shuffled], kind="stable")]
    return np.sort(by_class[fold::folds])


class Parts(NamedTuple):
    """Rows of a source's train split, ascending, by what they are used for."""

    train: Indices
    validation: Indices
    test: Indices


def split_train(
    targets: Indices,
    *,
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    folds: int | None = None,
    fold: int = 0,
) -> Parts:
    """Split what a source has as train: test is taken first, then validation from the rest.

    Args:
        targets: class of each example [n].
        validation_fraction: share of what test leaves; 0: none.
        test_fraction: share of all; 0: none.
        seed: seed of the split.
        folds: of cross-validation: validation is one of so many parts of what test leaves, and
            ``validation_fraction`` does not count.
        fold: which of them, from 0.
    """
    rows = np.arange(len(targets))
    none = np.empty(0, dtype=np.int64)
    test = take_fraction(targets, test_fraction, seed, "test") if test_fraction else none
    rest = np.setdiff1d(rows, test, assume_unique=True)
    if folds is not None:
        inside = take_fold(targets[rest], folds, fold, seed)
    elif validation_fraction:
        inside = take_fraction(targets[rest], validation_fraction, seed, "validation")
    else:
        return Parts(rest, none, test)
    validation = rest[inside]
    return Parts(np.setdiff1d(rest, validation, assume_unique=True), validation, test)
