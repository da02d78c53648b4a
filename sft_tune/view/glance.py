"""A study at a glance: in words for the report's head, in a few lines of HTML for a notebook."""

from __future__ import annotations

import html
from collections import Counter
from typing import NamedTuple

from sft_tune.view import noise, words
from sft_tune.view.failures import broken
from sft_tune.view.finalists_words import fresh_in_words
from sft_tune.view.judgement import standings_of
from sft_tune.view.material import Material
from sft_tune.view.status import past_of
from sft_tune.view.tables import FINISHED, state_of_study


class Glance(NamedTuple):
    """What a study found, as a person says it.

    Attributes:
        headline: the result in a sentence.
        sure: how sure it is; empty where nothing is known of that.
        effort: how many trials, how they ended and what they took.
        state: what becomes of the study.
    """

    headline: str
    sure: str
    effort: str
    state: str


def glance(material: Material) -> Glance:
    """Return what the study found, in sentences."""
    ended = [past_of(row) for row in material.trials if row.state in FINISHED]
    counts = Counter(past.reason for past in ended)
    device = sum(row.took or 0.0 for row in material.trials)
    effort = (
        f"{words.plural(len(ended), 'trial')}: {words.reasons(counts)}" if ended else "no trial"
    )
    effort += f"; {words.duration(device)} on the device" if device else ""
    active = material.study.active_seconds
    effort += f", {words.duration(active)} of the study's time" if active else ""
    return Glance(
        headline=_headline(material),
        sure=_sure(material),
        effort=f"{effort}.",
        state=state_of_study(material.study, material.now),
    )


def _headline(material: Material) -> str:
    best, default = material.best, material.default_trial
    if best is None or best.value is None:
        found = broken(material.trials)
        if found is None or not found.every:
            return "No trial has completed yet."
        told = found.in_words()
        return f"{told[0].upper()}{told[1:]}."
    reached = f"Trial {best.number} reached {material.metric} {words.score(best.value)}"
    reached += " on validation" if material.study.metric else ""
    if default is None or default.value is None:
        return f"{reached}."
    if default.number == best.number or default.value == best.value:
        return f"{reached}: nothing tried beats the default configuration."
    change = words.gain(best.value - default.value)
    return f"{reached}; the default configuration {words.score(default.value)} ({change})."


def _sure(material: Material) -> str:
    found = standings_of(material) if material.runs else None
    if found is not None:
        return f"Fresh seeds, since the best of many scores is too good: {fresh_in_words(found)}."
    best, default, examples = material.best, material.default_trial, material.examples
    if best is None or best.value is None or not examples:
        return ""
    told = noise.measured(material.metric, best.value, examples).capitalize() + "."
    if default is None or default.value is None or default.number == best.number:
        return told
    if noise.is_noise(material.metric, best.value, default.value, examples):
        told += " Chance alone may make two values on so few differ so much: confirm before"
        told += " believing the gain."
    return told


def glance_html(material: Material) -> str:
    """Return the study as a small piece of HTML: no script, no picture, nothing to fetch."""
    told = glance(material)
    best = material.best
    rows = [("state", told.state), ("trials", told.effort)]
    if best is not None:
        rows.append((f"trial {best.number}", words.settings(best.params) or "the defaults"))
    cells = "".join(
        f"<tr><td style='text-align:left;vertical-align:top'>{html.escape(name)}</td>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in rows
    )
    return (
        f"<div><b>{html.escape(material.study.name)}</b><br>{html.escape(told.headline)}"
        f"<table>{cells}</table></div>"
    )
