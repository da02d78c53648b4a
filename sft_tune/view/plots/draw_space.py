"""The space drawn: importances, slices, a contour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plotly import graph_objects as go
from plotly.subplots import make_subplots

from sft_tune.view import words
from sft_tune.view.material import Material
from sft_tune.view.plots import space_rows, style
from sft_tune.view.plots.marks import MOST_HOVERS, value_range
from sft_tune.view.plots.rows import COMPLETED, KINDS, OTHER, PRUNED, RUNNING
from sft_tune.view.plots.space_rows import CHOICES, LOG, Axis, SpacePoint
from sft_tune.view.plots.style import Drawing
from sft_tune.view.plots.ticks import axis_settings


def draw_importances(material: Material) -> Drawing:
    """Draw how much each hyperparameter matters."""
    data = material.importances
    if not data.shares:
        why = f"not known: {data.missing}" if data.missing else "not known"
        return Drawing(style.message(why), f"Which hyperparameter matters is {why}", "")
    shown = list(reversed(data.shares))
    figure = style.new_figure(height=90 + 34 * len(shown))
    figure.add_trace(
        go.Bar(
            orientation="h",
            x=[share for _, share in shown],
            y=list(range(len(shown))),
            text=[f"{share:.0%}" for _, share in shown],
            textposition="outside",
            cliponaxis=False,
            marker={"color": style.BLUE},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    figure.update_yaxes(
        tickvals=list(range(len(shown))),
        ticktext=[style.plain(name) for name, _ in shown],
        showgrid=False,
    )
    most = max(share for _, share in shown)
    figure.update_xaxes(
        title_text="share of importance", tickformat=".0%", range=[0, min(1.1, most * 1.18)]
    )
    pruned = f" ({data.pruned} pruned)" if data.pruned else ""
    many = words.plural(data.trials, "trial")
    note = f"How the best {data.best} of {many}{pruned} differ from all (PED-ANOVA)."
    if data.shares[0][0] not in material.seen:
        note += " The title is of a test on all trials, that of `compare --by`."
    if data.is_noisy:
        note += " That is few: the order may change with more trials."
    return Drawing(figure, _what_matters(material), note)


def _what_matters(material: Material) -> str:
    """Return in words which hyperparameter matters, so far as it is more than chance explains."""
    data, seen = material.importances, material.seen
    first, share = data.shares[0]
    if first in seen:
        return f"{first} matters most ({share:.0%})"
    if seen:
        return f"Beyond chance only {' and '.join(seen)} is seen to matter"
    return f"{words.plural(data.trials, 'trial')} do not tell from chance what matters"


def draw_slices(material: Material, names: Sequence[str]) -> Drawing:
    """Draw the objective along each of ``names``, side by side."""
    data = [part for part in space_rows.slices(material, names) if part.points]
    if not data:
        return Drawing(style.message("no trial has a value yet"), "No slice yet", "")
    figure = make_subplots(rows=1, cols=len(data), shared_yaxes=True, horizontal_spacing=0.06)
    figure.update_layout(style.new_figure().layout)
    named: set[str] = set()
    for column, part in enumerate(data, 1):
        for kind in KINDS:
            own = [p for p in part.points if p.kind == kind]
            if own:
                trace = _slice_marks(kind, part.axis, own, material.metric)
                figure.add_trace(trace.update(showlegend=kind not in named), 1, column)
                named.add(kind)
        figure.update_xaxes(**axis_settings(part.axis), row=1, col=column)
    figure.update_xaxes(gridcolor=style.RULE, zeroline=False, automargin=True, ticks="outside")
    figure.update_yaxes(gridcolor=style.RULE, zeroline=False, automargin=True)
    figure.update_yaxes(title_text=style.plain(material.metric), col=1)
    figure.update_yaxes(range=value_range(material))
    best = material.best
    title = f"{material.metric} along {' and '.join(part.axis.name for part in data)}"
    if best is not None:
        there = [p.axis.name for p in data if p.axis.name in best.params]
        told = ", ".join(f"{name} {words.setting(best.params[name])}" for name in there)
        title += f"; the best lies at {told}" if told else ""
    note = "Each mark is a trial; the other hyperparameters differ from mark to mark."
    drawn, total = len(data[0].points), data[0].total
    return Drawing(figure, title, note + (f" {drawn} of {total} drawn." if drawn < total else ""))


def _slice_marks(kind: str, axis: Axis, own: Sequence[SpacePoint], metric: str) -> go.Scatter:
    places = [p.places[0] or 0.0 for p in own]
    if axis.scale == CHOICES:
        # Side by side within a choice, by number: a fixed place, so that a report repeats.
        places = [
            x + 0.5 * (((p.number * 0.618034) % 1.0) - 0.5)
            for x, p in zip(places, own, strict=True)
        ]
    told: dict[str, Any] = {"hoverinfo": "skip"}
    if len(own) <= MOST_HOVERS:
        told = {
            "customdata": [[p.number, _setting(axis, p)] for p in own],
            "hovertemplate": f"trial %{{customdata[0]}}: {style.plain(metric)} %{{y:.4g}}"
            f" at %{{customdata[1]}}<extra>{style.NAMES[kind]}</extra>",
        }
    return go.Scatter(
        x=places,
        y=[p.value for p in own],
        mode="markers",
        marker=style.MARKS[kind],
        name=style.NAMES[kind],
        legendgroup=kind,
        **told,
    )


def _setting(axis: Axis, point: SpacePoint) -> str:
    place = point.places[0] or 0.0
    if axis.scale == CHOICES:
        return style.plain(axis.choices[round(place)])
    return words.number(10**place if axis.scale == LOG else place)


_ON_SURFACE = {PRUNED: "circle", OTHER: "x", RUNNING: "triangle-right"}
"""The marks of trials that did not complete, where there is a surface behind them."""


def draw_contour(material: Material, names: Sequence[str]) -> Drawing:
    """Draw the objective over two hyperparameters: a smoothed surface, and the trials on it."""
    data = space_rows.contour(material, names)
    if data is None:
        why = "needs two hyperparameters that vary, and a trial that has both"
        return Drawing(style.message(why), "No contour yet", "")
    figure = style.new_figure(height=460)
    x, y = data.axes
    if data.surface:
        figure.add_trace(
            go.Heatmap(
                x=list(data.xs),
                y=list(data.ys),
                z=[list(row) for row in data.surface],
                colorscale=style.SCALE,
                reversescale=not material.maximize,
                zsmooth=False if CHOICES in (x.scale, y.scale) else "best",
                colorbar={"thickness": 12, "outlinewidth": 0, "tickformat": ".3~g"},
                hoverinfo="skip",
                opacity=0.9,
            )
        )
    for kind in KINDS:
        own = [p for p in data.points if p.kind == kind]
        if own:
            figure.add_trace(_contour_marks(kind, own, material.metric))
    figure.update_xaxes(**axis_settings(x), showgrid=False)
    figure.update_yaxes(**axis_settings(y), showgrid=False)
    title = f"{material.metric} over {x.name} and {y.name}"
    best = material.best
    if best is not None and all(axis.name in best.params for axis in data.axes):
        at = " and ".join(words.setting(best.params[axis.name]) for axis in data.axes)
        title += f"; the best lies at {at}"
    note = "Brighter is better. The surface is a mean of completed trials, nearer ones heavier: "
    note += "between few marks it is a guess."
    return Drawing(figure, title, note if data.surface else "Too few completed for a surface.")


def _contour_marks(kind: str, own: Sequence[SpacePoint], metric: str) -> go.Scatter:
    mark = {**style.MARKS[kind], "opacity": 1.0}
    if kind == COMPLETED:
        mark |= {"color": style.INK, "line": {"width": 1, "color": "#ffffff"}, "size": 8}
    elif kind in _ON_SURFACE:
        # Filled and bordered: a line alone is lost where the surface is as bright as it is.
        line = {"width": 1.4, "color": style.INK}
        mark |= {"symbol": _ON_SURFACE[kind], "color": "#ffffff", "line": line, "size": 8}
    return go.Scatter(
        x=[p.places[0] for p in own],
        y=[p.places[1] for p in own],
        mode="markers",
        marker=mark,
        name=style.NAMES[kind],
        customdata=[[p.number, words.score(p.value)] for p in own],
        hovertemplate=f"trial %{{customdata[0]}}: {style.plain(metric)} %{{customdata[1]}}"
        f"<extra>{style.NAMES[kind]}</extra>",
    )
