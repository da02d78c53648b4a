"""The default configuration against the best trial, drawn metric by metric."""

from __future__ import annotations

import math

from plotly import graph_objects as go

from sft_tune.view import words
from sft_tune.view.material import Material
from sft_tune.view.plots import rows, style
from sft_tune.view.plots.rows import BEST, DEFAULT
from sft_tune.view.plots.style import Drawing


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
