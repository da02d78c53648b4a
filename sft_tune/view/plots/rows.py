"""What the plots of a search's course are made of: numbers, computed first and drawn second.

A value that is not finite cannot be drawn; each tuple says how many were left out.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from sft_tune.store.rows import EvaluationRow, TrialRow
from sft_tune.view.material import Material, is_number

BEST = "best"
DEFAULT = "default"
COMPLETED = "completed"
PRUNED = "pruned"
OTHER = "other"
RUNNING = "running"
KINDS = (PRUNED, OTHER, RUNNING, COMPLETED, DEFAULT, BEST)
"""What a trial is in a plot; those behind are drawn first."""

MOST_CURVES = 300
MOST_BARS = 2000


class HistoryPoint(NamedTuple):
    """A trial's value, and the best value of a completed trial up to it (None: none yet)."""

    number: int
    value: float
    best: float | None
    kind: str


class History(NamedTuple):
    """How the best value came to be.

    Attributes:
        points: one a trial with a value, by number.
        default: value of the default configuration; None: unknown.
        left_out: trials that ended without a finite value.
    """

    points: tuple[HistoryPoint, ...]
    default: float | None
    left_out: int


class Curve(NamedTuple):
    """A trial's way: the objective at each rung (progress in percent, or the reported step)."""

    number: int
    kind: str
    progress: tuple[int, ...]
    values: tuple[float, ...]


class Curves(NamedTuple):
    """The learning curves: those that are drawn, and of how many."""

    drawn: tuple[Curve, ...]
    total: int


class CostPoint(NamedTuple):
    """What a trial took and gave; ``front``: it completed, as none did that took less for more."""

    number: int
    seconds: float
    value: float
    kind: str
    front: bool


class Bar(NamedTuple):
    """A trial on its slot: from ``start`` for ``seconds``, both since the first trial's start."""

    number: int
    lane: int
    start: float
    seconds: float
    kind: str


class Timeline(NamedTuple):
    """Which trial ran where and when.

    Attributes:
        lanes: the names of the slots.
        bars: the trials on them.
        total: how many trials were begun; more than the bars when only the last are drawn.
        busy: share of the time from first start to last end that the slots had a trial.
    """

    lanes: tuple[str, ...]
    bars: tuple[Bar, ...]
    total: int
    busy: float


class Pair(NamedTuple):
    """A validation metric of the default configuration and of the best."""

    metric: str
    default: float
    tuned: float


class Comparison(NamedTuple):
    """The default configuration against the best; ``numbers`` are the two trials."""

    pairs: tuple[Pair, ...]
    numbers: tuple[int, int]


def kind_of(row: TrialRow, best: int | None, default: int | None) -> str:
    """Return what the trial ``row`` is among the others.

    Args:
        row: the trial.
        best: number of the best one.
        default: number of the default configuration's.
    """
    if row.number == best:
        return BEST
    if row.number == default:
        return DEFAULT
    if row.state == "COMPLETE":
        return COMPLETED
    if row.state in ("RUNNING", "WAITING"):
        return RUNNING
    return PRUNED if row.state == "PRUNED" and row.reason in (None, "pruned") else OTHER


def kinds(material: Material) -> dict[int, str]:
    """Return what each trial of the study is, by number."""
    best, default = material.best, material.default_trial
    numbers = (None if best is None else best.number, None if default is None else default.number)
    return {row.number: kind_of(row, *numbers) for row in material.trials}


def history(material: Material) -> History:
    """Return each trial's value, and the best so far; only completed trials can be the best."""
    known = kinds(material)
    better = max if material.maximize else min
    points: list[HistoryPoint] = []
    best: float | None = None
    ended = [row for row in material.trials if row.state not in ("RUNNING", "WAITING")]
    for row in ended:
        if row.value is None or not is_number(row.value):
            continue
        if row.state == "COMPLETE":
            best = row.value if best is None else better(best, row.value)
        points.append(HistoryPoint(row.number, row.value, best, known[row.number]))
    default = material.default_trial
    return History(
        tuple(points), None if default is None else default.value, len(ended) - len(points)
    )


def curves(material: Material, most: int = MOST_CURVES) -> Curves:
    """Return the learning curves, at most ``most``: the best ones, and some of all the others."""
    known = kinds(material)
    ways: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for rung in material.rungs:
        value = rung.metrics.get(material.metric)
        if value is not None and is_number(value) and rung.number in known:
            ways[rung.number].append((rung.progress, value))
    shown = _some_of(list(ways), ways, known, most, material.maximize)
    drawn = [
        Curve(n, known[n], tuple(p for p, _ in ways[n]), tuple(v for _, v in ways[n]))
        for n in shown
    ]
    drawn.sort(key=lambda curve: (KINDS.index(curve.kind), curve.number))
    return Curves(tuple(drawn), len(ways))


def _some_of(
    numbers: Sequence[int],
    ways: dict[int, list[tuple[int, float]]],
    known: dict[int, str],
    most: int,
    maximize: bool,
) -> list[int]:
    """Choose what is drawn: the best and the default, half by value, half evenly over time."""
    if len(numbers) <= most:
        return list(numbers)
    choose = max if maximize else min
    peaks = {n: choose(value for _, value in ways[n]) for n in numbers}
    pick = heapq.nlargest if maximize else heapq.nsmallest
    chosen = {n for n in numbers if known[n] in (BEST, DEFAULT)}
    chosen |= set(pick(most // 2, numbers, key=lambda n: peaks[n]))
    rest = [n for n in numbers if n not in chosen]
    wanted = most - len(chosen)
    chosen |= {rest[i * len(rest) // wanted] for i in range(wanted)}
    return sorted(chosen)


def cost(material: Material) -> tuple[CostPoint, ...]:
    """Return time on the device and value of each ended trial, pruned ones at what they reached.

    A result that was taken over from an equal configuration took no time, and is left out.
    """
    known = kinds(material)
    found = []
    for row in material.trials:
        seconds = row.took
        if row.duplicate_of is not None or row.state not in ("COMPLETE", "PRUNED"):
            continue
        if row.value is not None and is_number(row.value) and seconds:
            found.append((row.number, seconds, row.value, row.state == "COMPLETE"))
    sign = -1.0 if material.maximize else 1.0
    front: set[int] = set()
    least = float("inf")
    for number, _, value, complete in sorted(found, key=lambda p: (p[1], sign * p[2])):
        if complete and sign * value < least:
            least = sign * value
            front.add(number)
    return tuple(
        CostPoint(number, seconds, value, known[number], number in front)
        for number, seconds, value, _ in found
    )


def timeline(material: Material, most: int = MOST_BARS) -> Timeline:
    """Return which trial ran on which slot and when; the last ``most`` of them."""
    begun = [
        row
        for row in material.trials
        if row.started is not None and row.duplicate_of is None and row.state != "WAITING"
    ]
    begun.sort(key=lambda row: (row.started, row.number))
    shown = begun[-most:]
    if not shown or shown[0].started is None:
        return Timeline((), (), 0, 0.0)
    known = kinds(material)
    origin = shown[0].started.timestamp()
    lanes: list[str] = []
    free: dict[str, list[float]] = defaultdict(list)  # when each lane of a device ends
    places: dict[tuple[str, int], int] = {}
    bars = []
    for row in shown:
        start, end = _span(row, material.now)
        device = _device(row)
        ends = free[device]
        lane = next((i for i, until in enumerate(ends) if until <= start + 1.0), len(ends))
        if lane == len(ends):
            ends.append(end)
            places[device, lane] = len(lanes)
            lanes.append(device if lane == 0 else f"{device} #{lane + 1}")
        ends[lane] = max(ends[lane], end)
        kind = known[row.number]
        bars.append(Bar(row.number, places[device, lane], start - origin, end - start, kind))
    whole = max(bar.start + bar.seconds for bar in bars) * len(lanes)
    busy = sum(bar.seconds for bar in bars) / whole if whole > 0 else 0.0
    return Timeline(tuple(lanes), tuple(bars), len(begun), min(1.0, busy))


def _span(row: TrialRow, now: float) -> tuple[float, float]:
    start = row.started.timestamp() if row.started else now
    if row.ended is not None:
        return start, max(start, row.ended.timestamp())
    # One that nobody holds any longer ran until its lease ended, at the latest.
    until = now if row.lease_expires is None else min(now, row.lease_expires)
    return start, max(start, until)


def _device(row: TrialRow) -> str:
    device = row.device if row.device and row.device != "none" else "device unknown"
    return f"{device} of {row.host}" if row.host else device


def comparison(material: Material) -> Comparison | None:
    """Return the metrics of default and best trial, the objective first; None without both."""
    default, best = material.default_trial, material.best
    if default is None or best is None:
        return None
    before, after = default.metrics, best.metrics
    pairs = [
        Pair(name, before[name], after[name])
        for name in sorted(before, key=lambda name: name != material.metric)
        if name in after and is_number(before[name]) and is_number(after[name])
    ]
    return Comparison(tuple(pairs), (default.number, best.number))


def by_number(rungs: Sequence[EvaluationRow]) -> dict[int, list[EvaluationRow]]:
    """Return the rungs of each trial."""
    found: dict[int, list[EvaluationRow]] = defaultdict(list)
    for rung in rungs:
        found[rung.number].append(rung)
    return found
