"""Where the axes of hyperparameters have marks, and what these say."""

from __future__ import annotations

import math
from typing import Any

from sft_tune.view import words
from sft_tune.view.plots import style
from sft_tune.view.plots.space_rows import CHOICES, LOG, Axis

_MOST_TICKS = 7


def axis_settings(axis: Axis) -> dict[str, Any]:
    """Return plotly's settings of an axis on which ``axis.place`` gives the coordinates."""
    places, texts = tick_marks(axis)
    margin = 0.5 if axis.scale == CHOICES else 0.04 * (axis.high - axis.low or 1.0)
    return {
        "title": {"text": style.plain(axis.name), "font": {"size": 13, "color": style.QUIET}},
        "tickvals": places,
        "ticktext": [style.plain(text) for text in texts],
        "range": [axis.low - margin, axis.high + margin],
    }


def tick_marks(axis: Axis) -> tuple[list[float], list[str]]:
    """Return where an axis has marks, and what they say."""
    if axis.scale == CHOICES:
        step = max(1, -(-len(axis.choices) // 12))
        places = list(range(0, len(axis.choices), step))
        return [float(p) for p in places], [cut(axis.choices[p]) for p in places]
    if axis.scale == LOG:
        return _log_marks(axis)
    span = axis.high - axis.low
    if span <= 0:
        return [axis.low], [words.number(axis.low)]
    marks = [axis.low + span * i / 4 for i in range(5)]
    if axis.step:
        marks = _step_marks(axis)
    return marks, [_plain(mark) if axis.step else words.number(mark, 3) for mark in marks]


def _plain(mark: float) -> str:
    """Return the text of a value of steps: integers in full."""
    return words.number(int(mark) if mark.is_integer() else mark, 3)


def _step_marks(axis: Axis) -> list[float]:
    """Return marks at values that there are: all of few, else every 2nd, 5th, 10th and so on."""
    count = math.floor((axis.high - axis.low) / axis.step + 1e-9)
    units = (factor * 10**power for power in range(16) for factor in (1, 2, 5))
    unit = next((unit for unit in units if count // unit < _MOST_TICKS), count)
    before = axis.low / axis.step
    # At multiples where the values are multiples: 10, 20, 30 and not 3, 13, 23.
    first = -round(before) % unit if abs(before - round(before)) < 1e-9 else 0
    return [axis.low + i * axis.step for i in range(first, count + 1, unit)]


def _log_marks(axis: Axis) -> tuple[list[float], list[str]]:
    low, high = math.floor(axis.low), math.ceil(axis.high)
    factors = (1, 2, 5) if high - low <= 2 else (1, 3) if high - low <= 3 else (1,)
    edge = 0.02 * (axis.high - axis.low) + 1e-9
    values = [
        factor * 10.0**power
        for power in range(low, high + 1)
        for factor in factors
        if axis.low - edge <= math.log10(factor) + power <= axis.high + edge
    ]
    if len(values) > _MOST_TICKS + 2:
        values = values[:: -(-len(values) // _MOST_TICKS)]
    if len(values) < 2:
        values = [10**axis.low, 10**axis.high]
    return [math.log10(value) for value in values], [words.number(v, 2) for v in values]


def cut(text: str, longest: int = 18) -> str:
    """Return the end of a ``text`` that is longer than ``longest`` characters."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"
