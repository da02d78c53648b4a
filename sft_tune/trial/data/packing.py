"""Packing: several examples in one row, so that hardly anything is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def packed(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Return which examples stand together in a row, each row's total at most ``limit``.

    Best fit, the longest first: each goes where it leaves the least room (as Ding et al. 2024,
    "Fewer Truncations Improve Language Modeling", section 3.2). Rows come in the order of their
    first example.

    Args:
        lengths: of the examples, none above ``limit``.
        limit: the most that a row holds.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is left of each row, and the row; sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(room, (lengths[i], -1))
        if place == len(room):
            left, row = limit, len(rows)
            rows.append([])
        else:
            left, row = room.pop(place)
        rows[row].append(i)
        insort(room, (left - lengths[i], row))
    return sorted(sorted(row) for row in rows)
