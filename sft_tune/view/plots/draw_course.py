"""The course of a search drawn: each trial's value and the best so far, and learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plotly import graph_objects as go

from sft_tune.view import words
from sft_tune.view.material import Material
from sft_tune.view.plots import rows, style
from sft_tune.view.plots.marks import metric_title, staircase, trial_marks, value_range
from sft_tune.view.plots.rows import BEST, COMPLETED, DEFAULT, KINDS, OTHER, PRUNED, RUNNING
from sft_tune.view.plots.style import Drawing


def draw_history(material: Material) -> Drawing:
    """Draw each trial's value and the best so far."""
    data = rows.history(material)
    if not data.points:
        return Drawing(style.message("no trial has a value yet"), "No result yet", "")
    figure = style.new_figure()
    if data.default is not None:
        figure.add_hline(
            y=data.default,
            line={"color": style.ORANGE, "width": 1.2, "dash": "dash"},
        )
    steps = [p for p in data.points if p.best is not None]
    figure.add_trace(
        staircase([p.number for p in steps], [p.best for p in steps], name="best so far", width=1.8)
    )
    for kind in KINDS:
        own = [p for p in data.points if p.kind == kind]
        if own:
            figure.add_trace(
                trial_marks(
                    kind, [p.number for p in own], [p.value for p in own], own, material.metric
                )
            )
    figure.update_xaxes(title_text="trial", **_numbers(data.points[-1].number))
    figure.update_yaxes(title_text=metric_title(material), range=value_range(material))
    return Drawing(figure, _history_title(material, data), _left_out(data))


def _numbers(last: int) -> dict[str, Any]:
    """Return settings of an axis of trials up to ``last``, with room for the marks at its ends."""
    room = max(0.5, 0.02 * last)
    return {"range": [-room, last + room], "dtick": 1 if last < 10 else None}


def _history_title(material: Material, data: rows.History) -> str:
    best = material.best
    if best is None or best.value is None:
        return f"None of {words.plural(len(data.points), 'trial')} has completed yet"
    text = f"Trial {best.number} reached {material.metric} {words.score(best.value)}"
    if data.default is None:
        return text
    if best.value == data.default:
        return f"{text}; nothing tried beats the default configuration"
    better = best.value - data.default
    return f"{text}, {words.score(abs(better))} {_beyond(material)} the default configuration"


def _beyond(material: Material) -> str:
    return "above" if material.maximize else "below"


def _left_out(data: rows.History) -> str:
    note = "Each mark is a trial, pruned ones at the best that they had reached."
    if data.default is not None:
        note += " The dashed line is the default configuration."
    if data.left_out:
        many = words.plural(data.left_out, "trial")
        note += f" {many} without a finite value {'is' if data.left_out == 1 else 'are'} left out."
    return note


def draw_curves(material: Material, most: int = rows.MOST_CURVES) -> Drawing:
    """Draw the learning curves, pruned ones faint."""
    data = rows.curves(material, most)
    if not data.drawn:
        return Drawing(style.message("nothing was measured yet"), "No learning curve yet", "")
    figure = style.new_figure()
    for kind in KINDS:
        own = [curve for curve in data.drawn if curve.kind == kind]
        if own:
            figure.add_trace(_lines(kind, own))
    percent = material.record is not None
    step = "share of its own schedule that a trial has done, %" if percent else "reported step"
    figure.update_xaxes(title_text=step)
    figure.update_yaxes(title_text=metric_title(material), range=value_range(material))
    return Drawing(figure, _curves_title(data), _curves_note(data))


def _lines(kind: str, own: Sequence[rows.Curve]) -> go.Scatter:
    """Return all curves of a kind as one line with gaps: quick to draw, small on the page."""
    x: list[float | None] = []
    y: list[float | None] = []
    leads = kind in (BEST, DEFAULT)
    # A way of one point has no line: without a mark, trials cut at the first rung would not show.
    sizes: list[int] = []
    for curve in own:
        x += [*curve.progress, None]
        y += [*curve.values, None]
        sizes += [6 if leads else 5 if len(curve.values) == 1 else 0] * (len(curve.values) + 1)
    width = 2.8 if leads else 1.2 if kind in (COMPLETED, RUNNING) else 0.8
    few = len(own) <= 12
    line = {
        "color": style.MARKS[kind]["color"],
        "width": width,
        "dash": {DEFAULT: "dash", RUNNING: "dot"}.get(kind, "solid"),
    }
    shares = {PRUNED: 0.55, OTHER: 0.5, COMPLETED: 0.6}
    faint = shares.get(kind, 1.0) * (1.0 if few else 0.7)
    single = len(own) == 1 and leads
    return go.Scatter(
        x=x,
        y=y,
        mode="lines+markers" if any(sizes) else "lines",
        marker={
            "size": sizes,
            "symbol": "diamond" if kind == DEFAULT else "circle",
            "line": {"width": 0},
        },
        line=line,
        opacity=faint,
        name=f"{style.NAMES[kind]} (trial {own[0].number})" if single else style.NAMES[kind],
        hovertemplate="%{x}: %{y:.4g}" + f"<extra>{style.NAMES[kind]}</extra>",
    )


def _curves_title(data: rows.Curves) -> str:
    cut = sum(curve.kind == PRUNED for curve in data.drawn)
    if data.total == len(data.drawn):
        text = f"How {words.plural(data.total, 'trial')} learned"
        return f"{text}; {cut} of them were cut short" if cut else text
    return f"How {len(data.drawn)} of {data.total} trials learned"


def _curves_note(data: rows.Curves) -> str:
    note = "Every trial is measured at the same shares of its own schedule. Pruned ones are faint."
    if data.total > len(data.drawn):
        note += " Drawn: the best half, and an even choice of the others."
    return note
