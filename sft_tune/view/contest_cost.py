"""What a search found for how much, and what a part of that would have found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sft_tune.store.rows import TrialRow
from sft_tune.view.material import Material, is_number
from sft_tune.view.statistics import best_of_orders, expected_best
from sft_tune.view.tables import FINISHED

SHARES = (0.25, 0.5, 1.0)
"""Parts of the same budget at which the studies are compared."""

HALVINGS = 30
"""Steps of the search for how long a trial may have been idle: to a second in a century."""

_NEVER = datetime.max.replace(tzinfo=UTC)

AXES = ("trials", "seconds", "wall")
"""What a budget is measured in: trials, seconds on the device, seconds in which trials ran."""


class Step(NamedTuple):
    """Where a study stood after a trial had ended.

    Attributes:
        trials: that had ended.
        seconds: on the device, of all of them; None where some are not known.
        wall: seconds in which any of the study's trials ran; None where some are not known.
        best: value of the best completed one; None: none had completed.
    """

    trials: int
    seconds: float | None
    wall: float | None
    best: float | None


class Chance(NamedTuple):
    """What a part of the same budget finds.

    Attributes:
        share: the part.
        trials: so many of the study's trials it buys, at their mean cost.
        found: best value after the first so many trials, in the order that happened.
        expected: mean best of so many trials over all orders (`statistics.expected_best`).
        low: 95 % of the orders find between this
        high: and this (`statistics.best_of_orders`).
    """

    share: float
    trials: int
    found: float | None
    expected: float
    low: float
    high: float


def steps_of(material: Material) -> tuple[Step, ...]:
    """Return where the study stood after each trial, in the order in which they ended."""
    better = max if material.maximize else min
    ended = [row for row in material.trials if row.state in FINISHED]
    # A trial without times keeps its place by number, after those that have them.
    ended.sort(key=lambda row: (row.ended is None, row.ended or _NEVER, row.number))
    walls = _wall_after(ended, material.study.active_seconds)
    steps: list[Step] = []
    best: float | None = None
    seconds: float | None = 0.0
    for count, (row, wall) in enumerate(zip(ended, walls, strict=True), start=1):
        if row.state == "COMPLETE" and row.value is not None and is_number(row.value):
            best = row.value if best is None else better(best, row.value)
        took = 0.0 if row.duplicate_of is not None else row.took
        seconds = None if seconds is None or took is None else seconds + took
        steps.append(Step(count, seconds, wall, best))
    return tuple(steps)


def _wall_after(ended: Sequence[TrialRow], active: float | None) -> list[float | None]:
    """Return for each trial, in order of their ends, the seconds in which any ran until its end.

    A night between two sessions of a study is nobody's cost: only time with a trial counts. Of a
    trial that was interrupted begin and end are known, not the night between: where all trials
    together would have taken more than the ``active`` seconds that the study ran, those that were
    idle for longest, by their seconds on the device, are taken to have begun later.
    """
    spans = [
        (row.started.timestamp(), row.ended.timestamp(), row.seconds)
        for row in ended
        if row.started is not None and row.ended is not None
    ]
    if len(spans) < len(ended):
        return [None] * len(ended)

    def walls(most_idle: float) -> list[float]:
        return _unions(
            [
                (start if took is None else max(start, end - took - most_idle), end)
                for start, end, took in spans
            ]
        )

    low, high = 0.0, math.inf
    found = walls(high)
    if active and found and found[-1] > active:
        high = max(end - start for start, end, _ in spans)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if walls(middle)[-1] > active else (middle, high)
        found = walls(low)
    return list(found)


def _unions(spans: Sequence[tuple[float, float]]) -> list[float]:
    """Return for each of ``spans``, in order of their ends, how much it and those before cover."""
    found: list[float] = []
    busy: list[tuple[float, float]] = []  # apart from each other, in order
    for start, end in spans:
        start = min(start, end)
        # Ends come in order: the new span can only swallow or lengthen the last ones.
        while busy and busy[-1][1] >= start:
            start = min(start, busy.pop()[0])
        busy.append((start, end))
        found.append(sum(until - since for since, until in busy))
    return found


def best_within(steps: Sequence[Step], axis: str, limit: float | None) -> float | None:
    """Return the best value that the study had when ``limit`` of the ``axis`` was spent."""
    if limit is None:
        return None
    # Sums of seconds in another order may differ in their last digit.
    inside = [step for step in steps if (getattr(step, axis) or 0.0) <= limit * (1 + 1e-9)]
    return inside[-1].best if inside else None


def chances(
    material: Material, steps: Sequence[Step], measure: str, same: float
) -> tuple[Chance, ...]:
    """Return what the parts `SHARES` of the same budget find; () where no trial has a value.

    Args:
        material: the study.
        steps: its `steps_of`.
        measure: what the budget is of, one of `AXES`, known of every step.
        same: the budget, at most what the study spent.
    """
    values = outcomes(material)
    if not values or not same:
        return ()
    n, maximize = len(values), material.maximize
    whole = getattr(steps[-1], measure) or 0.0
    found = []
    for share in SHARES:
        count = min(n, max(1, int(share * same / whole * n + 1e-9)))
        low, high = best_of_orders(values, count, maximize=maximize)
        expected = expected_best(values, count, maximize=maximize)
        found.append(Chance(share, count, steps[count - 1].best, expected, low, high))
    return tuple(found)


def outcomes(material: Material) -> list[float]:
    """Return a value for each ended trial; empty where none has completed with one.

    Of a pruned trial it is what it had reached, but never more than the best completed one, of
    which alone a study says that it is its best. A trial without a finite value found nothing: it
    counts as the worst of the study.
    """
    best = material.best
    if best is None or best.value is None:
        return []
    less, worst_of = (min, min) if material.maximize else (max, max)
    ended = [row for row in material.trials if row.state in FINISHED]
    known = [
        less(row.value, best.value)
        for row in ended
        if row.value is not None and is_number(row.value) and row.state != "FAIL"
    ]
    return known + [worst_of(known)] * (len(ended) - len(known))
