"""Parallel coordinates: every trial as a line over the hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence

from plotly import graph_objects as go

from sft_tune.view import words
from sft_tune.view.material import Material
from sft_tune.view.plots import space_rows, style
from sft_tune.view.plots.space_rows import Axis, SpacePoint
from sft_tune.view.plots.style import Drawing
from sft_tune.view.plots.ticks import cut, tick_marks

BANDS = 5
"""Shades of the lines of parallel coordinates, from the worst fifth to the best."""

NOWHERE = -0.12
"""Where a line passes an axis of which the trial has no value."""

_SHADES = ("#cfd6db", "#b3c6d6", "#7fb0d3", "#3a8fc4", "#0072b2")


def draw_parallel(material: Material) -> Drawing:
    """Draw every trial as a line over the hyperparameters, the best in front."""
    data = space_rows.parallel(material)
    if len(data.axes) < 2 or not data.lines:
        why = "needs two hyperparameters that vary, and trials with a value"
        return Drawing(style.message(why), "No parallel coordinates yet", "")
    figure = style.new_figure(height=420)
    for band in range(BANDS):
        own = data.lines[band * len(data.lines) // BANDS : (band + 1) * len(data.lines) // BANDS]
        if own:
            figure.add_trace(_band(band, own, data.axes))
    for kind, color, dash in (("default", style.ORANGE, "dash"), ("best", style.INK, "solid")):
        leads = [line for line in data.lines if line.kind == kind]
        if leads:
            trace = _band(BANDS - 1, leads, data.axes)
            line = {"color": color, "width": 3, "dash": dash}
            figure.add_trace(trace.update(line=line, opacity=1.0, name=kind, showlegend=True))
    for place, axis in enumerate(data.axes):
        _add_axis(figure, place, axis)
    ends = len(data.axes) - 1
    figure.update_xaxes(
        tickvals=list(range(len(data.axes))),
        ticktext=[
            style.plain(a.name).replace("_", "_<br>").replace(".", ".<br>") for a in data.axes
        ],
        range=[-0.35, ends + 0.55],
        side="top",
        showgrid=False,
        ticks="",
        linewidth=0,
    )
    figure.update_yaxes(visible=False, range=[-0.2, 1.06])
    figure.update_layout(legend={"y": -0.02, "yanchor": "top"})
    many = words.plural(data.total, "trial")
    title = f"{many} over {words.plural(len(data.axes), 'hyperparameter')}, the best in front"
    note = f"Darker lines have better {material.metric}. A line that begins or ends below has no "
    note += "value there (its condition does not hold)."
    drawn = len(data.lines)
    return Drawing(figure, title, note + (f" {drawn} are drawn." if drawn < data.total else ""))


def _band(band: int, own: Sequence[SpacePoint], axes: Sequence[Axis]) -> go.Scatter:
    x: list[float | None] = []
    y: list[float | None] = []
    for line in own:
        for place, axis in enumerate(axes):
            at = line.places[place]
            x.append(place)
            y.append(NOWHERE if at is None else round(axis.share(at), 4))
        x.append(None)
        y.append(None)
    names = {0: "worst fifth", BANDS - 1: "best fifth"}
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": _SHADES[band], "width": 1.0 + 0.25 * band},
        opacity=0.75,
        name=names.get(band, ""),
        showlegend=band in names,
        hoverinfo="skip",
    )


def _add_axis(figure: go.Figure, place: int, axis: Axis) -> None:
    figure.add_shape(
        type="line",
        x0=place,
        x1=place,
        y0=0,
        y1=1,
        line={"color": style.QUIET, "width": 1},
    )
    for at, text in zip(*tick_marks(axis), strict=True):
        share = axis.share(at)
        if 0 <= share <= 1:
            figure.add_annotation(
                x=place,
                y=share,
                text=style.plain(cut(text, 12)),
                showarrow=False,
                xanchor="left",
                xshift=4,
                font={"size": 10, "color": style.QUIET},
                bgcolor="rgba(255,255,255,0.75)",
                borderpad=0,
            )
