"""What a search took, drawn: quality against time on the device, and who ran where and when."""

from __future__ import annotations

from collections.abc import Sequence

from plotly import graph_objects as go

from sft_tune.view import words
from sft_tune.view.material import Material
from sft_tune.view.plots import rows, style
from sft_tune.view.plots.marks import metric_title, staircase, time_unit, trial_marks, value_range
from sft_tune.view.plots.rows import DEFAULT, KINDS, OTHER, PRUNED
from sft_tune.view.plots.style import Drawing

FAINT = (PRUNED, OTHER)


def draw_cost(material: Material) -> Drawing:
    """Draw quality against time on the device, with the front of the completed trials."""
    data = rows.cost(material)
    if not data:
        return Drawing(style.message("no trial has both a time and a value"), "No cost yet", "")
    figure = style.new_figure()
    factor, unit = time_unit(max(p.seconds for p in data))
    front = sorted((p for p in data if p.front), key=lambda p: p.seconds)
    figure.add_trace(
        staircase(
            [p.seconds / factor for p in front],
            [p.value for p in front],
            name="best completed within the time",
            width=1.4,
        )
    )
    for kind in KINDS:
        own = [p for p in data if p.kind == kind]
        if own:
            x, y = [p.seconds / factor for p in own], [p.value for p in own]
            figure.add_trace(trial_marks(kind, x, y, own, material.metric))
    wide = max(p.seconds for p in data) > 50 * min(p.seconds for p in data)
    figure.update_xaxes(title_text=f"time on the device, {unit}", type="log" if wide else "linear")
    if wide:
        # Else plotly writes 2, 3, 5 between 1 and 10 in small.
        figure.update_xaxes(dtick=1, exponentformat="none", minor={"dtick": "D1", "ticks": ""})
    else:
        figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(title_text=metric_title(material), range=value_range(material))
    return Drawing(figure, _cost_title(data, material), _cost_note(material, data))


def _cost_title(data: Sequence[rows.CostPoint], material: Material) -> str:
    """Return what the best completed trial took and gave, and the default beside it."""
    best = max((p for p in data if p.front), key=lambda p: p.seconds, default=None)
    if best is None:
        return "No trial with a time has completed yet"
    told = (
        f"{material.metric} {words.score(best.value)} took {words.duration(best.seconds)} on the "
    )
    told += f"device (trial {best.number})"
    default = next((p for p in data if p.kind == DEFAULT and p is not best), None)
    if default is None:
        return told
    took = words.duration(default.seconds)
    return f"{told}; the default's {words.score(default.value)} took {took}"


def _cost_note(material: Material, data: Sequence[rows.CostPoint]) -> str:
    whole = sum(p.seconds for p in data)
    cut = sum(p.seconds for p in data if p.kind in FAINT)
    note = "The line joins the completed trials that none beat for less. "
    note += f"{words.duration(whole)} in all, {cut / whole:.0%} of it in trials that were cut."
    timed = material.record is not None
    return note if timed else f"{note} Times are from a trial's start to its end."


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
