"""The one look of all plots: sober, safe for colour-blind readers, readable in grey.

Colours are those of Okabe and Ito (2008); what a trial is shows in its mark's shape too.
"""

from __future__ import annotations

import html
from typing import Any, NamedTuple

from plotly import graph_objects as go

from sft_tune.view.plots.rows import BEST, COMPLETED, DEFAULT, OTHER, PRUNED, RUNNING

INK = "#1f2933"
QUIET = "#5f6b76"
RULE = "#e3e7ea"
BLUE = "#0072b2"
SKY = "#56b4e9"
ORANGE = "#d55e00"
GREEN = "#009e73"
GREY = "#8b97a1"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
SCALE = "Cividis"
"""Of surfaces: as bright in grey as in colour, and the same to colour-blind readers."""

NAMES = {
    BEST: "best",
    DEFAULT: "default",
    COMPLETED: "completed",
    PRUNED: "pruned",
    OTHER: "diverged or failed",
    RUNNING: "running",
}
MARKS: dict[str, dict[str, Any]] = {
    BEST: {
        "symbol": "star",
        "size": 15,
        "color": BLUE,
        "line": {"width": 1.2, "color": INK},
    },
    DEFAULT: {
        "symbol": "diamond",
        "size": 11,
        "color": ORANGE,
        "line": {"width": 1.2, "color": INK},
    },
    COMPLETED: {"symbol": "circle", "size": 7, "color": BLUE, "opacity": 0.75},
    PRUNED: {
        "symbol": "circle-open",
        "size": 6,
        "color": GREY,
        "line": {"width": 1.2},
    },
    OTHER: {"symbol": "x-thin-open", "size": 6, "color": QUIET, "line": {"width": 1.4}},
    RUNNING: {"symbol": "triangle-right-open", "size": 8, "color": GREEN},
}
BARS: dict[str, dict[str, Any]] = {
    BEST: {"color": BLUE, "line": {"width": 1, "color": INK}},
    DEFAULT: {"color": ORANGE, "line": {"width": 1, "color": INK}},
    COMPLETED: {"color": SKY, "line": {"width": 0.5, "color": "#ffffff"}},
    PRUNED: {"color": "#d5dade", "line": {"width": 0.5, "color": "#ffffff"}},
    OTHER: {
        "color": "#ffffff",
        "line": {"width": 0.8, "color": QUIET},
        "pattern": {"shape": "/", "fgcolor": QUIET, "size": 4},
    },
    RUNNING: {"color": GREEN, "line": {"width": 0.5, "color": "#ffffff"}},
}


class Drawing(NamedTuple):
    """A figure with what is seen in it.

    Attributes:
        figure: plotly's, without a title.
        title: what is seen, in a sentence of words and numbers.
        note: how to read it, and what it is of.
    """

    figure: go.Figure
    title: str
    note: str


def plain(text: object) -> str:
    """Return ``text`` such that plotly shows it as it is: it takes tags in text for its own."""
    return html.escape(str(text), quote=False)


def new_figure(height: int = 380, **layout: Any) -> go.Figure:
    """Return an empty figure in our look."""
    axis = {
        "gridcolor": RULE,
        "zeroline": False,
        "linecolor": GREY,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": GREY,
        "automargin": True,
        "title": {"font": {"size": 13, "color": QUIET}, "standoff": 8},
        "exponentformat": "power",
    }
    base: dict[str, Any] = {
        "template": None,
        "height": height,
        "autosize": True,
        "margin": {"l": 8, "r": 14, "t": 34, "b": 8},
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "#ffffff", "bordercolor": GREY, "font": {"color": INK}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"size": 12},
        },
        "xaxis": axis,
        "yaxis": axis,
    }
    figure = go.Figure(layout=base)
    return figure.update_layout(layout)


def message(text: str) -> go.Figure:
    """Return a figure that says why there is nothing to see."""
    figure = new_figure(height=160)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(
        text=plain(text),
        showarrow=False,
        x=0.5,
        y=0.5,
        xref="paper",
        yref="paper",
        font={"color": QUIET, "size": 14},
    )
    return figure


def titled(drawing: Drawing, width: int = 90, *, toolbar: bool = True) -> go.Figure:
    """Return the figure with its title and note in it, for where it stands alone.

    Args:
        drawing: the figure.
        width: columns of the title.
        toolbar: leave plotly's toolbar a line of its own above the title.
    """
    import textwrap

    def lines(text: str, columns: int) -> list[str]:
        return [plain(line) for line in textwrap.wrap(text, columns)]

    title, note = lines(drawing.title, width), lines(drawing.note, width + 25)
    text = f"<b>{'<br>'.join(title)}</b>"
    if note:
        text += f"<br><span style='font-size:12px;color:{QUIET}'>{'<br>'.join(note)}</span>"
    above = 44 if toolbar else 22
    room = 16 + above + 22 * len(title) + 17 * len(note)
    figure = go.Figure(drawing.figure)
    margin = figure.layout.margin
    figure.update_layout(
        title={
            "text": text,
            "font": {"size": 17},
            "x": 0,
            "xref": "paper",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": above},
        },
        height=(figure.layout.height or 380) + room,
        margin={"l": 60, "r": 30, "t": (margin.t or 0) + room, "b": 50},
    )
    return figure


def as_html(drawing: Drawing, name: str) -> str:
    """Return a page of its own with the plot: plotly is in it, nothing is fetched."""
    page = titled(drawing).to_html(
        include_plotlyjs=True, full_html=True, config={"displaylogo": False, "responsive": True}
    )
    head = f"<head><title>{html.escape(name)}</title>"
    return str(page).replace("<head>", head, 1)
