"""A study as one page that can be mailed, read on a phone and printed: nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from sft_tune.store.rows import TrialRow
from sft_tune.view import words
from sft_tune.view.glance import glance
from sft_tune.view.judgement import standings_of
from sft_tune.view.material import Material, is_number
from sft_tune.view.plots.catalog import draw_plot
from sft_tune.view.plots.rows import by_number
from sft_tune.view.report_judgement import advice_html, finalists_html
from sft_tune.view.report_page import figure_html, page, table_html, text
from sft_tune.view.tables import FINISHED, best_so_far, reached, searched, state_of_trial, titles_of

MOST_ROWS = 200
"""Trials in the table; of more, the best ones."""

PLOTS = (
    ("default", "Default against tuned"),
    ("history", "History"),
    ("curves", "Learning curves"),
    ("importances", "What matters"),
    ("slice", "Along two hyperparameters"),
    ("contour", "Both at once"),
    ("parallel", "All hyperparameters"),
    ("cost", "Cost against quality"),
    ("timeline", "Timeline"),
)


BREAKABLE = ("finalists", "advice", "trials", "origin")
"""Sections that go on over the end of a printed page; the others begin on the next."""


class Section(NamedTuple):
    """A part of the report: its anchor, its heading, and its HTML (already escaped)."""

    anchor: str
    heading: str
    body: str


def report_html(material: Material, versions: dict[str, str]) -> str:
    """Return the report on a study as a page.

    Args:
        material: the study.
        versions: of what wrote the report: name and version.
    """
    best = material.best
    found = [] if best is None else [_configuration(material, best)]
    if best is not None or material.runs:
        found.append(Section("finalists", "Is the winner real?", finalists_html(material)))
    plots = [_plot(material, name, heading) for name, heading in PLOTS if _has_values(material)]
    sections = [
        *found,
        Section("advice", "What to change next", advice_html(material)),
        *plots,
        _trials(material),
        _provenance(material, versions),
    ]
    links = "".join(f'<a href="#{s.anchor}">{text(s.heading)}</a>' for s in sections)
    parts = "\n".join(
        f'<section class="{"" if s.anchor in BREAKABLE else "part"}" '
        f'id="{s.anchor}"><h2>{text(s.heading)}</h2>\n{s.body}\n</section>'
        for s in sections
    )
    head = f"{_head(material)}\n<nav>{links}</nav>"
    return page(f"{material.study.name}: report", f"{head}\n{parts}")


def _has_values(material: Material) -> bool:
    """Tell whether there is anything to draw: a value, or a rung."""
    return bool(material.rungs) or any(is_number(row.value) for row in material.trials)


def _head(material: Material) -> str:
    told = glance(material)
    study = material.study
    aim = f"{study.direction} {material.metric}"
    when = words.moment(datetime.fromtimestamp(material.now, UTC))
    kind = "" if study.task is None else f"{study.task}, "
    sure = f"<p>{text(told.sure)}</p>" if told.sure else ""
    return (
        f"<h1>{text(study.name)}</h1>\n"
        f'<p class="quiet">{text(kind)}{text(aim)}; {text(told.state)}; as of {text(when)}</p>\n'
        f'<p class="lead">{text(told.headline)}</p>\n{sure}<p>{text(told.effort)}</p>\n'
        f"{_facts(material)}"
    )


def _facts(material: Material) -> str:
    """Return the numbers that are looked for first, large."""
    best, default = material.best, material.default_trial
    found = standings_of(material)
    facts = []
    if best is not None:
        facts.append((words.score(best.value), f"best {material.metric}, trial {best.number}"))
    if found is not None:
        mean = found.leader.validation
        seeds = words.plural(mean.n, "fresh seed")
        facts.append((words.score(mean.mean), f"over {seeds}, trial {found.leader.number}"))
    if best is not None and default is not None:
        change = (best.value or 0.0) - (default.value or 0.0)
        facts.append((words.score(default.value), "default configuration"))
        facts.append((words.gain(change), "tuned minus default"))
    ended = [row for row in material.trials if row.state in FINISHED]
    pruned = sum(row.state == "PRUNED" for row in ended)
    facts.append((str(len(ended)), f"trials, {pruned} of them pruned"))
    device = sum(row.took or 0.0 for row in material.trials)
    if device:
        facts.append((words.duration(device), "on the device"))
    cards = "".join(f"<div><b>{text(v)}</b><span>{text(what)}</span></div>" for v, what in facts)
    return f'<div class="facts">{cards}</div>'


def _configuration(material: Material, best: TrialRow) -> Section:
    default = material.default
    titles = ["hyperparameter", "tuned"] + ([] if default is None else ["default"])
    rows = []
    for name, value in best.params.items():
        cells = [name, words.setting(value)]
        if default is not None:
            known = name in default
            same = known and default[name] == value
            was = words.setting(default[name]) if known else words.NOTHING
            cells.append("same" if same else was)
        rows.append(cells)
    body = table_html(titles, rows, wrapped=True) if rows else "<p>Nothing was searched.</p>"
    body += _rungs(material, best)
    name = material.study.name
    if best.config is not None:
        calls = (f"sft-tune best {name} --yaml", f"sft-tune show {name} {best.number}")
        width = max(map(len, calls))
        told = ("as settings for a study file", "the whole trial")
        lines = [f"{call:{width}}  # {what}" for call, what in zip(calls, told, strict=True)]
        body += f"<pre>{text(chr(10).join(lines))}</pre>"
    return Section("best", f"Best configuration: trial {best.number}", body)


def _rungs(material: Material, best: TrialRow) -> str:
    """Return where in its schedule the best trial had its value, and its other metrics there."""
    metrics = ", ".join(f"{name} {words.score(value)}" for name, value in best.metrics.items())
    if best.best_progress is None or not metrics:
        return ""
    told = f"At {best.best_progress} % of its schedule, on validation: {metrics}."
    way = by_number(material.rungs).get(best.number, [])
    losses = [rung.train_loss for rung in way if is_number(rung.train_loss)]
    if losses:
        told += f" Train loss {words.score(losses[0])} → {words.score(losses[-1])}."
    return f"<p>{text(told)}</p>"


def _plot(material: Material, name: str, heading: str) -> Section:
    drawing = draw_plot(material, name)
    body = (
        f"<p><b>{text(drawing.title)}.</b></p>"
        f'<p class="quiet">{text(drawing.note)}</p>{figure_html(drawing, name)}'
    )
    return Section(name, heading, body)


def _trials(material: Material) -> Section:
    rows = ranked(material)
    if not rows:
        return Section("trials", "Trials", "<p>No trial has been begun yet.</p>")
    shown = rows[:MOST_ROWS]
    names = searched(shown)
    best = material.best
    titles = ["trial", "ended as", *titles_of(shown, material.metric), "time", *names]
    so_far = best_so_far(material.rungs, material.metric, maximize=material.maximize)
    cells = [_cells(row, so_far.get(row.number), names, material.now) for row in shown]
    place = next((i for i, r in enumerate(shown) if best and r.number == best.number), None)
    note = "The best first."
    if len(shown) < len(rows):
        note += f" {len(shown)} of {len(rows)}; sft-tune trials {material.study.name} has all."
    note += _failures(rows)
    table = table_html(titles, cells, left=(1,), best=place)
    return Section("trials", "Trials", f'<p class="quiet">{text(note)}</p>{table}')


def ranked(material: Material) -> list[TrialRow]:
    """Return the trials, completed ones by value, then pruned ones by value, then the others."""
    order = {"COMPLETE": 0, "PRUNED": 1, "RUNNING": 2}
    sign = -1.0 if material.maximize else 1.0

    def place(row: TrialRow) -> tuple[int, bool, float, int]:
        value = row.value if row.value is not None and is_number(row.value) else None
        return order.get(row.state, 3), value is None, sign * (value or 0.0), row.number

    return sorted(material.trials, key=place)


def _cells(row: TrialRow, so_far: float | None, names: Sequence[str], now: float) -> list[str]:
    params = row.params
    value = row.value if row.value is not None else so_far
    return [
        str(row.number),
        state_of_trial(row, now),
        words.score(value),
        reached(row),
        words.duration(row.took or None),
        *(words.setting(params[n], 3) if n in params else words.NOTHING for n in names),
    ]


def _failures(rows: Sequence[TrialRow]) -> str:
    failed = [row for row in rows if row.state == "FAIL" and row.note]
    if not failed:
        return ""
    first = (failed[0].note or "").strip().split("\n")[0]
    return f" Of the failed ones, trial {failed[0].number} says: {first}"


def _provenance(material: Material, versions: dict[str, str]) -> Section:
    record = material.record
    parts = []
    if record is not None:
        where = f" ({record.path})" if record.path else ""
        parts.append(
            f"<details open><summary>Study file{text(where)}</summary>"
            f"<pre>{text(record.text)}</pre></details>"
        )
        rows = [(name, version) for name, version in sorted(record.versions.items())]
        parts.append("<p>Versions when the study began:</p>" + table_html(["", ""], rows))
    else:
        parts.append(
            "<p>This study was not made by sft_tune: there is no study file, and steps are those "
            "that its program reported.</p>"
        )
    by = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts.append(f'<p class="quiet">Report written by {text(by)}.</p>')
    return Section("origin", "How it was made", "\n".join(parts))
