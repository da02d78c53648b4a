"""The course of a search drawn: history, learning curves, cost, timeline, default and tuned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from plotly import graph_objects as go

from sft_tune.view import words
from sft_tune.view.material import Material
from sft_tune.view.plots import rows, style
from sft_tune.view.plots.rows import BEST, COMPLETED, DEFAULT, KINDS, OTHER, PRUNED, RUNNING
from sft_tune.view.plots.style import Drawing

FAINT = (PRUNED, OTHER)
MOST_HOVERS = 2000
"""Above so many points a mark says less when pointed at, so that the page stays small."""

_UNITS = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"), (86400.0, "days"))


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
        go.Scatter(
            x=[p.number for p in steps],
            y=[p.best for p in steps],
            mode="lines",
            line={"color": style.INK, "width": 1.8, "shape": "hv"},
            name="best so far",
            hoverinfo="skip",
        )
    )
    for kind in KINDS:
        own = [p for p in data.points if p.kind == kind]
        if own:
            figure.add_trace(
                _marks(kind, [p.number for p in own], [p.value for p in own], own, material.metric)
            )
    figure.update_xaxes(title_text="trial", rangemode="tozero")
    figure.update_yaxes(title_text=_metric(material), range=value_range(material))
    return Drawing(figure, _history_title(material, data), _left_out(data))


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


def _metric(material: Material) -> str:
    where = " on validation" if material.study.metric else ""
    return f"{style.plain(material.metric)}{where}"


def _marks(
    kind: str, x: Sequence[float], y: Sequence[float], own: Sequence[Any], metric: str
) -> go.Scatter:
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
    figure.update_yaxes(title_text=_metric(material), range=value_range(material))
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


def draw_cost(material: Material) -> Drawing:
    """Draw quality against time on the device, with the front that nothing beats."""
    data = rows.cost(material)
    if not data:
        return Drawing(style.message("no trial has both a time and a value"), "No cost yet", "")
    figure = style.new_figure()
    factor, unit = time_unit(max(p.seconds for p in data))
    front = sorted((p for p in data if p.front), key=lambda p: p.seconds)
    figure.add_trace(
        go.Scatter(
            x=[p.seconds / factor for p in front],
            y=[p.value for p in front],
            mode="lines",
            line={"color": style.INK, "width": 1.4, "shape": "hv"},
            name="nothing is cheaper and better",
            hoverinfo="skip",
        )
    )
    for kind in KINDS:
        own = [p for p in data if p.kind == kind]
        if own:
            x, y = [p.seconds / factor for p in own], [p.value for p in own]
            figure.add_trace(_marks(kind, x, y, own, material.metric))
    wide = max(p.seconds for p in data) > 50 * min(p.seconds for p in data)
    figure.update_xaxes(title_text=f"time on the device, {unit}", type="log" if wide else "linear")
    if wide:
        # Else plotly writes 2, 3, 5 between 1 and 10 in small.
        figure.update_xaxes(dtick=1, exponentformat="none", minor={"dtick": "D1", "ticks": ""})
    else:
        figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(title_text=_metric(material), range=value_range(material))
    return Drawing(figure, _cost_title(material, front), _cost_note(material, data))


def _cost_title(material: Material, front: Sequence[rows.CostPoint]) -> str:
    if not front:
        return "What each trial took and gave"
    last, first = front[-1], front[0]
    told = f"{words.duration(last.seconds)} on the device for {material.metric} "
    told += words.score(last.value)
    if len(front) == 1:
        return told
    return f"{told}; {words.score(first.value)} took {words.duration(first.seconds)}"


def _cost_note(material: Material, data: Sequence[rows.CostPoint]) -> str:
    whole = sum(p.seconds for p in data)
    cut = sum(p.seconds for p in data if p.kind in FAINT)
    note = f"{words.duration(whole)} in all, {cut / whole:.0%} of it in trials that were cut."
    timed = material.record is not None
    return note if timed else f"{note} Times are from a trial's start to its end."


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the unit in which up to ``seconds`` are best read: its seconds, and its name."""
    return next((u for u in reversed(_UNITS) if seconds >= 2 * u[0]), _UNITS[0])


def draw_timeline(material: Material) -> Drawing:
    """Draw which trial ran on which slot, and when."""
    data = rows.timeline(material)
    if not data.bars:
        return Drawing(style.message("no trial was begun yet"), "No trial was begun yet", "")
    figure = style.new_figure(height=130 + 34 * len(data.lanes), barmode="overlay", bargap=0.25)
    factor, unit = time_unit(max(bar.start + bar.seconds for bar in data.bars))
    for kind in KINDS:
        own = [bar for bar in data.bars if bar.kind == kind]
        if own:
            figure.add_trace(
                go.Bar(
                    orientation="h",
                    base=[bar.start / factor for bar in own],
                    x=[bar.seconds / factor for bar in own],
                    y=[bar.lane for bar in own],
                    customdata=[[bar.number, words.duration(bar.seconds)] for bar in own],
                    hovertemplate="trial %{customdata[0]}, %{customdata[1]}"
                    f"<extra>{style.NAMES[kind]}</extra>",
                    name=style.NAMES[kind],
                    marker=style.BARS[kind],
                )
            )
    figure.update_yaxes(
        tickvals=list(range(len(data.lanes))),
        ticktext=[_short(lane) for lane in data.lanes],
        autorange="reversed",
        showgrid=False,
    )
    figure.update_xaxes(title_text=f"{unit} since the first start", rangemode="tozero")
    title = (
        f"{words.plural(data.total, 'trial')} on {words.plural(len(data.lanes), 'slot')}, "
        f"busy {data.busy:.0%} of the time"
    )
    note = "Each bar is a trial from its first start to its end, pauses between included."
    if data.total > len(data.bars):
        note += f" The last {len(data.bars)} are drawn."
    return Drawing(figure, title, note)


def _short(text: str, longest: int = 24) -> str:
    return style.plain(text if len(text) <= longest else f"{text[: longest - 1]}…")


def draw_default(material: Material) -> Drawing:
    """Draw each validation metric of the default configuration and of the best trial."""
    data = rows.comparison(material)
    if data is None or not data.pairs:
        text = "needs the default configuration and a best trial, both completed"
        return Drawing(style.message(text), "Default against tuned: not yet known", "")
    # Losses have no upper end: on an axis with scores they would say nothing.
    scores = [p for p in data.pairs if p.metric != "loss" and _in_unit(p)]
    pairs = scores if data.pairs[0] in scores else list(data.pairs[:1])
    figure = style.new_figure(height=110 + 46 * len(pairs))
    places = list(range(len(pairs)))
    for place, pair in zip(places, pairs, strict=True):
        figure.add_shape(
            type="line",
            x0=pair.default,
            x1=pair.tuned,
            y0=place,
            y1=place,
            line={"color": style.GREY, "width": 3},
            layer="below",
        )
    numbers = dict(zip((DEFAULT, BEST), data.numbers, strict=True))
    for kind, values in (
        (DEFAULT, [p.default for p in pairs]),
        (BEST, [p.tuned for p in pairs]),
    ):
        figure.add_trace(
            go.Scatter(
                x=values,
                y=places,
                mode="markers+text",
                marker=style.MARKS[kind],
                text=[words.score(value) for value in values],
                textposition="top center" if kind == BEST else "bottom center",
                textfont={"size": 12},
                cliponaxis=False,
                name=f"{style.NAMES[kind]} (trial {numbers[kind]})",
                hovertemplate="%{x:.4g}" + f"<extra>{style.NAMES[kind]}</extra>",
            )
        )
    figure.update_yaxes(
        tickvals=places,
        ticktext=[style.plain(p.metric) for p in pairs],
        range=[len(pairs) - 0.4, -0.6],
        showgrid=False,
    )
    figure.update_xaxes(title_text="on validation")
    first = data.pairs[0]
    change = words.gain(first.tuned - first.default)
    title = f"{first.metric} {words.score(first.default)} → {words.score(first.tuned)} ({change})"
    return Drawing(figure, title, "The default configuration against the best trial.")


def _in_unit(pair: rows.Pair) -> bool:
    return all(-1 <= value <= 1 and math.isfinite(value) for value in (pair.default, pair.tuned))
