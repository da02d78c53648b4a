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
    if all(float(end).is_integer() for end in (axis.low, axis.high)) and span <= _MOST_TICKS:
        marks = [axis.low + i for i in range(int(span) + 1)]
    return marks, [words.number(mark, 3) for mark in marks]


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
