"""What the plots of the space are made of: where trials lie in it, and what they reached there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_tune.errors import UserError
from sft_tune.spec.space import Parameter
from sft_tune.view import words
from sft_tune.view.material import Material, is_number
from sft_tune.view.plots.rows import kinds

LINEAR = "linear"
LOG = "log"
CHOICES = "choices"

MOST_LINES = 400
MOST_POINTS = 3000
GRID = 40
"""Cells of a contour's surface along each axis with a range."""

_WIDE = 100
"""Where nobody says which scale a range has: one that spans so many times is logarithmic."""


class Axis(NamedTuple):
    """A hyperparameter as an axis.

    Attributes:
        name: of the hyperparameter.
        scale: ``linear``, ``log`` or ``choices``.
        choices: with ``choices``: what stands at 0, 1, 2 and so on.
        low: the least place on the axis (of ``log``: the logarithm to base 10).
        high: the greatest.
        step: with ``linear``: the distance between values that it can have; 0: it can have any.
    """

    name: str
    scale: str
    choices: tuple[str, ...]
    low: float
    high: float
    step: float = 0.0

    def place(self, value: Any) -> float:
        """Return where ``value`` lies on the axis."""
        if self.scale == CHOICES:
            return float(self.choices.index(choice_text(value)))
        return math.log10(value) if self.scale == LOG else float(value)

    def share(self, place: float) -> float:
        """Return where ``place`` is between the ends of the axis, 0 to 1."""
        return 0.5 if self.high <= self.low else (place - self.low) / (self.high - self.low)


class SpacePoint(NamedTuple):
    """A trial at its places on the axes; None where it has no value of that hyperparameter."""

    number: int
    places: tuple[float | None, ...]
    value: float
    kind: str
    progress: int | None


class Slice(NamedTuple):
    """The objective along one hyperparameter."""

    axis: Axis
    points: tuple[SpacePoint, ...]
    total: int


class Contour(NamedTuple):
    """The objective over two hyperparameters.

    Attributes:
        axes: the two.
        points: the trials that have both.
        xs: places of the surface's columns.
        ys: places of its rows.
        surface: the smoothed objective [rows, columns]; empty where points are too few.
    """

    axes: tuple[Axis, Axis]
    points: tuple[SpacePoint, ...]
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    surface: tuple[tuple[float, ...], ...]


class Parallel(NamedTuple):
    """Every hyperparameter side by side; lines from the worst to the best."""

    axes: tuple[Axis, ...]
    lines: tuple[SpacePoint, ...]
    total: int


def choice_text(value: Any) -> str:
    """Return a choice as the axis shows it; of a path its last part."""
    return words.setting(value)


def parameters(material: Material) -> list[str]:
    """Return the names of the hyperparameters, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in material.trials for name in row.params))


def varied(material: Material) -> list[str]:
    """Return those that have more than one value, the most important first.

    Those seen to matter come before others, whose importance chance explains as well.
    """
    seen: dict[str, set[str]] = {}
    for row in material.trials:
        for name, value in row.params.items():
            seen.setdefault(name, set()).add(repr(value))
    names = [name for name, values in seen.items() if len(values) > 1]
    rank = {name: place for place, name in enumerate(material.importances.leading)}
    return sorted(names, key=lambda name: (name not in material.seen, rank.get(name, len(rank))))


def chosen(material: Material, wanted: Sequence[str], count: int) -> list[str]:
    """Return ``wanted``, or the ``count`` most important hyperparameters where none is given.

    Raises:
        UserError: the study has no hyperparameter of this name.
    """
    known = parameters(material)
    for name in wanted:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "none of its trials has any yet"
            raise UserError(
                f"--param: study {material.study.name!r} has no hyperparameter {name!r}; {has}"
            )
    return list(wanted) or varied(material)[:count]


def axis_of(name: str, values: Sequence[Any], parameter: Parameter | None) -> Axis:
    """Return the axis of a hyperparameter.

    Args:
        name: of it.
        values: those that trials have, at least one.
        parameter: what the space says of it; None: unknown, and the values decide.
    """
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    in_space = parameter is not None and parameter.values is not None
    if in_space or not numeric or not all(map(is_number, values)):
        given = list(parameter.values or ()) if parameter is not None else []
        texts = dict.fromkeys(choice_text(v) for v in [*given, *_in_order(values)])
        return Axis(name, CHOICES, tuple(texts), 0.0, max(0.0, len(texts) - 1.0))
    low, high = min(values), max(values)
    if parameter is not None and parameter.low is not None and parameter.high is not None:
        low, high = min(low, parameter.low), max(high, parameter.high)
    log = parameter.log if parameter is not None else low > 0 and high / low >= _WIDE
    if log and low > 0:
        return Axis(name, LOG, (), math.log10(low), math.log10(high))
    whole = all(isinstance(value, int) for value in (*values, low, high))
    step = (parameter.step if parameter is not None else None) or (1 if whole else 0)
    return Axis(name, LINEAR, (), float(low), float(high), float(step))


def _in_order(values: Sequence[Any]) -> list[Any]:
    def place(value: Any) -> tuple[int, float, str]:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return (0, float(value), "")
        return (1, 0.0, str(value))

    return sorted(values, key=place)


def axes_of(material: Material, names: Sequence[str]) -> list[Axis]:
    """Return the axes of the hyperparameters ``names`` that trials have a value of."""
    found = []
    for name in names:
        values = [row.params[name] for row in material.trials if name in row.params]
        if values:
            found.append(axis_of(name, values, material.space.get(name)))
    return found


def points(material: Material, axes: Sequence[Axis]) -> list[SpacePoint]:
    """Return where each trial with a finite value lies; pruned ones have what they reached."""
    known = kinds(material)
    found = []
    for row in material.trials:
        if row.value is None or not is_number(row.value) or row.state == "FAIL":
            continue
        own = row.params
        places = tuple(axis.place(own[axis.name]) if axis.name in own else None for axis in axes)
        found.append(
            SpacePoint(row.number, places, row.value, known[row.number], row.last_progress)
        )
    return found


def slices(material: Material, names: Sequence[str]) -> list[Slice]:
    """Return the objective along each of ``names``."""
    found = []
    for axis in axes_of(material, names):
        own = [point for point in points(material, [axis]) if point.places[0] is not None]
        found.append(Slice(axis, tuple(_thinned(own, MOST_POINTS)), len(own)))
    return found


def _thinned(found: list[SpacePoint], most: int) -> list[SpacePoint]:
    """Return at most ``most`` of the points: the best, the default, and evenly among the rest."""
    if len(found) <= most:
        return found
    leading = [point for point in found if point.kind in ("best", "default")]
    rest = [point for point in found if point.kind not in ("best", "default")]
    wanted = most - len(leading)
    return [rest[i * len(rest) // wanted] for i in range(wanted)] + leading


def contour(material: Material, names: Sequence[str]) -> Contour | None:
    """Return the objective over the two hyperparameters ``names``; None where nothing has both.

    Only trials that completed make the surface: a mean of theirs, weighted by the inverse square
    of the distance (Shepard 1968), each axis scaled to 0..1, so that it shows no value beyond
    those measured.
    """
    axes = axes_of(material, names)
    if len(axes) < 2:
        return None
    pair = (axes[0], axes[1])
    own = [point for point in points(material, pair) if None not in point.places]
    if not own:
        return None
    complete = [p for p in own if p.kind in ("best", "default", "completed")]
    xs, ys = (_cells(axis) for axis in pair)
    surface = _surface(pair, complete, xs, ys) if len(complete) >= 4 else ()
    return Contour(pair, tuple(_thinned(own, MOST_POINTS)), xs, ys, surface)


def _cells(axis: Axis) -> tuple[float, ...]:
    if axis.scale == CHOICES:
        return tuple(float(i) for i in range(len(axis.choices)))
    if axis.high <= axis.low:
        return (axis.low,)
    return tuple(float(x) for x in np.linspace(axis.low, axis.high, GRID))


def _surface(
    axes: tuple[Axis, Axis],
    found: Sequence[SpacePoint],
    xs: Sequence[float],
    ys: Sequence[float],
) -> tuple[tuple[float, ...], ...]:
    def scaled(axis: Axis, places: Sequence[float | None]) -> np.ndarray[Any, Any]:
        return np.array([axis.share(place or 0.0) for place in places])

    px, py = (scaled(axis, [p.places[i] for p in found]) for i, axis in enumerate(axes))
    values = np.array([p.value for p in found])
    columns = scaled(axes[0], xs)
    rows = []
    for y in scaled(axes[1], ys):
        squared = (columns[:, None] - px[None, :]) ** 2 + (y - py[None, :]) ** 2
        weights = 1.0 / (squared + 1e-4)
        rows.append(tuple(float(z) for z in (weights @ values) / weights.sum(axis=1)))
    return tuple(rows)


def parallel(material: Material, most: int = MOST_LINES) -> Parallel:
    """Return every trial as a line over the hyperparameters that vary, the best drawn last.

    Completed trials come first when there are more than ``most``, then those that got furthest.
    """
    axes = axes_of(material, varied(material))
    own = points(material, axes) if axes else []
    kept = sorted(own, key=lambda p: (p.kind in ("pruned", "other"), -(p.progress or 0)))[:most]
    sign = 1.0 if material.maximize else -1.0
    kept.sort(key=lambda point: (point.kind not in ("pruned", "other"), sign * point.value))
    return Parallel(tuple(axes), tuple(kept), len(own))
