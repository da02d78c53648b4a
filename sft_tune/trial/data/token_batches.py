"""Batches of at most so many tokens, padding included, in place of so many examples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sft_tune.trial.data.batches import LEAST_POOLS, POOL_BATCHES, epoch_order, permutation

Indices = NDArray[np.int64]


def token_batches(
    lengths: Indices, tokens: int, seed: int, epoch: int, *, bucketed: bool
) -> list[Indices]:
    """Return the batches of an epoch, every example in one of them.

    The examples are shuffled; bucketed, they are cut into pools of many batches, and each pool is
    sorted by length, one downwards and the next upwards, so that neighbours stay alike where one
    pool ends. Then each batch takes examples until the next would not fit, and the batches are
    shuffled.

    Args:
        lengths: tokens of the examples, [n, k]: of each of the k texts that are padded apart.
        tokens: what a batch may have: its examples times the sum of the longest of each text. An
            example that is longer is a batch by itself.
        seed: of the order.
        epoch: whose batches they are.
        bucketed: whether batches hold examples of similar lengths.

    Returns:
        Indices, each int64 [b]; they depend on the arguments only.
    """
    order = epoch_order(len(lengths), seed, epoch).numpy()
    if bucketed:
        order = _sorted_in_pools(order, lengths.sum(axis=1), tokens)
    ends = _ends(lengths[order], tokens)
    batches = np.split(order, ends[:-1])
    shuffled = permutation(len(batches), f"{seed}/batches/{epoch}").tolist()
    return [batches[i] for i in shuffled]


def in_batches(batches: list[Indices], count: int) -> list[Indices]:
    """Return ``batches`` as ``count``, at least as many: the largest are halved, again and again.

    Raises:
        ValueError: when there are not so many examples.
    """
    found = list(batches)
    while len(found) < count:
        at = max(range(len(found)), key=lambda i: len(found[i]))
        largest = found[at]
        if len(largest) < 2:
            raise ValueError(f"{len(found)} examples cannot be {count} batches")
        half = (len(largest) + 1) // 2
        found[at : at + 1] = [largest[:half], largest[half:]]
    return found


def _sorted_in_pools(order: Indices, lengths: Indices, tokens: int) -> Indices:
    count = max(1, -(-int(lengths.sum()) // tokens))
    examples = -(-len(order) // count)
    pool = examples * max(1, min(count // LEAST_POOLS, POOL_BATCHES))
    parts = []
    for number, start in enumerate(range(0, len(order), pool)):
        part = order[start : start + pool]
        sign = -1 if number % 2 == 0 else 1
        parts.append(part[np.argsort(sign * lengths[part], kind="stable")])
    return np.concatenate(parts)


def _ends(lengths: Indices, tokens: int) -> list[int]:
    """Return where each batch ends when examples of ``lengths`` [n, k] are taken in their order."""
    ends: list[int] = []
    start, longest = 0, [0] * lengths.shape[1]
    for place, row in enumerate(lengths.tolist()):
        wider = [max(pair) for pair in zip(longest, row, strict=True)]
        if place > start and (place + 1 - start) * sum(wider) > tokens:
            ends.append(place)
            start, wider = place, row
        longest = wider
    return [*ends, len(lengths)]
