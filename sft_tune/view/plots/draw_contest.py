"""Studies side by side, drawn: the best so far against what it took."""

from __future__ import annotations

from plotly import graph_objects as go

from sft_tune.view.contest import Contest, Entrant
from sft_tune.view.contest_tables import OF, amount
from sft_tune.view.marginal import Marginal
from sft_tune.view.plots import style
from sft_tune.view.plots.marks import time_unit
from sft_tune.view.plots.style import Drawing
from sft_tune.view.words import score

COLORS = (style.BLUE, style.ORANGE, style.GREEN, "#cc79a7", style.SKY, "#e69f00", style.INK)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def draw_best_so_far(found: Contest, axis: str) -> Drawing:
    """Draw each study's best value against its trials, device seconds or wall seconds.

    Args:
        found: the comparison.
        axis: one of `contest_cost.AXES`.
    """
    same = found.same[axis]
    if not same:
        text = f"{OF[axis]}: not known of every study"
        return Drawing(style.message(text), text.capitalize(), "")
    longest = max(getattr(e.spent, axis) for e in found.entrants)
    factor, unit = (1.0, "trials") if axis == "trials" else time_unit(longest)
    figure = style.new_figure()
    for place, entrant in enumerate(found.entrants):
        figure.add_trace(_way(entrant, axis, factor, place))
    figure.add_vline(x=same / factor, line={"color": style.QUIET, "width": 1.2, "dash": "dash"})
    title = unit if axis == "trials" else f"{OF[axis]}, {unit}"
    figure.update_xaxes(title_text=title, rangemode="tozero")
    figure.update_yaxes(title_text=f"best {style.plain(found.metric)} so far")
    told = "; ".join(f"{e.label} {score(e.at_same[axis])}" for e in found.entrants)
    note = "The dashed line is the same budget: all that the study that spent least had spent."
    return Drawing(figure, f"With {amount(axis, same)}: {told}", note)


def _way(entrant: Entrant, axis: str, factor: float, place: int) -> go.Scatter:
    known = [step for step in entrant.steps if step.best is not None]
    return go.Scatter(
        x=[getattr(step, axis) / factor for step in known],
        y=[step.best for step in known],
        mode="lines+markers",
        line={
            "color": COLORS[place % len(COLORS)],
            "dash": DASHES[place % len(DASHES)],
            "width": 2,
            "shape": "hv",
        },
        marker={"size": 4},
        name=style.plain(entrant.label),
        hovertemplate="%{x:.4g}: %{y:.4g}<extra></extra>",
    )


def draw_marginal(found: Marginal) -> Drawing:
    """Draw the mean of each group of values with its interval, its median, and its best."""
    figure = style.new_figure()
    places = list(range(len(found.groups)))
    means = [group.mean for group in found.groups]
    figure.add_trace(
        go.Scatter(
            x=places,
            y=[m.mean for m in means],
            error_y={
                "type": "data",
                "array": [0.0 if m.high is None else m.high - m.mean for m in means],
                "arrayminus": [0.0 if m.low is None else m.mean - m.low for m in means],
                "width": 6,
            },
            mode="markers",
            marker={"size": 9, "color": style.BLUE},
            name="mean, 95 %",
        )
    )
    if found.span is not None:
        figure.add_trace(
            go.Scatter(
                x=[place + 0.12 for place in places],
                y=[g.adjusted for g in found.groups],
                error_y={"type": "data", "array": [g.adjusted_half for g in found.groups]},
                mode="markers",
                marker={"symbol": "diamond-open", "size": 11, "color": style.GREEN},
                name="adjusted mean, 95 %",
            )
        )
    for name, symbol, color, values in (
        ("median", "line-ew-open", style.INK, [g.median for g in found.groups]),
        ("best", "star", style.ORANGE, [g.best for g in found.groups]),
    ):
        figure.add_trace(
            go.Scatter(
                x=places,
                y=values,
                mode="markers",
                marker={"symbol": symbol, "size": 11, "color": color},
                name=name,
            )
        )
    figure.update_xaxes(
        tickvals=places,
        ticktext=[f"{style.plain(g.label)}<br>n {g.mean.n}" for g in found.groups],
        title_text=style.plain(found.name),
    )
    figure.update_yaxes(title_text=style.plain(found.metric))
    title = f"{found.metric} by {found.name}, {found.where}"
    return Drawing(figure, title, "")
