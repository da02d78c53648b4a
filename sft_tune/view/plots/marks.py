"""What several plots share: marks of trials, the line of the best, the objective's axis, units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plotly import graph_objects as go

from sft_tune.view.material import Material
from sft_tune.view.plots import rows, style

MOST_HOVERS = 2000
"""Above so many points a mark says less when pointed at, so that the page stays small."""

_UNITS = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"), (86400.0, "days"))


def trial_marks(
    kind: str, x: Sequence[float], y: Sequence[float], own: Sequence[Any], metric: str
) -> go.Scatter:
    """Return the marks of trials of a ``kind``; ``own`` are those at ``x`` and ``y``, by number."""
    told: dict[str, Any] = {"hoverinfo": "skip"}
    if len(own) <= MOST_HOVERS:
        told = {
            "customdata": [p.number for p in own],
            "hovertemplate": f"trial %{{customdata}}: {style.plain(metric)} %{{y:.4g}}"
            f"<extra>{style.NAMES[kind]}</extra>",
        }
    return go.Scatter(
        x=list(x),
        y=list(y),
        mode="markers",
        name=style.NAMES[kind],
        marker=style.MARKS[kind],
        **told,
    )


def staircase(
    x: Sequence[float], y: Sequence[float | None], *, name: str, width: float
) -> go.Scatter:
    """Return a line that keeps each value up to the next point, ``width`` pixels wide."""
    return go.Scatter(
        x=list(x),
        y=list(y),
        mode="lines",
        line={"color": style.INK, "width": width, "shape": "hv"},
        name=name,
        hoverinfo="skip",
    )


def metric_title(material: Material) -> str:
    """Return the title of the objective's axis."""
    where = " on validation" if material.study.metric else ""
    return f"{style.plain(material.metric)}{where}"


def value_range(material: Material) -> list[float] | None:
    """Return the range of the objective that holds nearly all trials; None: all of them.

    A few that diverged would squeeze all others into a line: what lies beyond three times the
    spread of the middle four fifths is cut off.
    """
    known = rows.history(material).points
    values = sorted(p.value for p in known)
    if len(values) < 5:
        return None
    low, high = values[len(values) // 10], values[-1 - len(values) // 10]
    spread = high - low
    least = max(values[0], low - 3 * spread)
    most = min(values[-1], high + 3 * spread)
    if spread <= 0 or (least, most) == (values[0], values[-1]):
        return None
    for row in (material.best, material.default_trial):
        if row is not None and row.value is not None:
            least, most = min(least, row.value), max(most, row.value)
    margin = 0.06 * (most - least)
    return [least - margin, most + margin]


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the unit in which up to ``seconds`` are best read: its seconds, and its name."""
    return next((u for u in reversed(_UNITS) if seconds >= 2 * u[0]), _UNITS[0])
