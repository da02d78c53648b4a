"""One trial on a page: the best of a study, or any by its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_tune.spec.faults import from_flags
from sft_tune.store.rows import EvaluationRow, StudyRow, TrialRow
from sft_tune.view import words
from sft_tune.view.status import owner_in_words
from sft_tune.view.tables import (
    STYLES,
    configuration,
    plain_table,
    reached,
    rungs_table,
    state_of_trial,
    watched_table,
)

if TYPE_CHECKING:
    from sft_tune.spec.space import Value


def draw_best(
    study: StudyRow,
    row: TrialRow,
    default: Mapping[str, Value] | None,
    confirmed: str | None = None,
) -> RenderableType:
    """Return the best trial of ``study``: what it reached, by which settings, and where it lies.

    Args:
        study: the study.
        row: its best trial.
        default: the default point of its space; None: unknown.
        confirmed: what fresh seeds say of it, in words; None: nothing is to be said.
    """
    head = Text.assemble(
        (f"{study.metric or 'value'} {words.score(row.value)}", "bold"),
        f"  trial {row.number} of {study.name}",
    )
    facts = _facts()
    if row.metrics:
        facts.add_row("validation", _metrics(row.metrics))
    if confirmed is not None:
        facts.add_row("confirmed", confirmed)
    if (folds := words.folds(row.flags)) is not None:
        facts.add_row("folds", folds)
    if row.best_progress is not None:
        facts.add_row("best rung", f"at {row.best_progress} % of its {_steps(row)}")
    facts.add_row("trained for", words.duration(row.took))
    if row.checkpoint is not None:
        facts.add_row("weights", words.short_path(row.checkpoint))
    parts: list[RenderableType] = [head, facts]
    if row.config is not None or row.params:
        parts += ["", configuration(row.config, row.params, default)]
    return Group(*parts)


def draw_trial(
    study: StudyRow,
    row: TrialRow,
    rungs: Sequence[EvaluationRow],
    default: Mapping[str, Value] | None,
    place: str | None,
    files: Mapping[str, int],
    now: float,
    confirmation_errors: Mapping[int, str] = MappingProxyType({}),
) -> RenderableType:
    """Return the trial ``row`` of ``study``, whole.

    Args:
        study: the study.
        row: the trial.
        rungs: its rungs.
        default: the default point of the study's space; None: unknown.
        place: where its files lie, a folder or a URL; None: unknown.
        files: their names and sizes in bytes.
        now: seconds since 1970.
        confirmation_errors: of its confirmation runs, by their seeds.
    """
    state = state_of_trial(row, now)
    head = Text.assemble(
        (f"trial {row.number} of {study.name}: ", "bold"), (state, f"bold {STYLES.get(state, '')}")
    )
    if row.note:
        head.append(f", {row.note}")
    parts: list[RenderableType] = [head, _trial_facts(study, row, rungs, now)]
    faults = from_flags(row.flags)
    if faults:
        table = plain_table()
        table.add_column("what went wrong", style="yellow", no_wrap=True)
        table.add_column("", overflow="fold")
        for fault in faults:
            table.add_row(fault.short, Text(fault.evidence))
        parts += ["", table]
    if row.config is not None or row.params:
        parts += ["", configuration(row.config, row.params, default)]
    if rungs:
        parts += ["", rungs_table(rungs, study.metric)]
    watched = watched_table(rungs)
    if watched is not None:
        parts += ["", watched]
    if row.error:
        parts += ["", Text("errors", style="dim"), Text(row.error)]
    for seed, error in confirmation_errors.items():
        parts += ["", Text(f"errors of its confirmation with seed {seed}", style="dim")]
        parts.append(Text(error))
    if files and place is not None:
        table = plain_table()
        table.add_column(f"files in {words.short_path(place)}", overflow="fold")
        table.add_column("", justify="right")
        for name, size in files.items():
            table.add_row(name, words.size(size))
        parts += ["", table]
    return Group(*parts)


def _trial_facts(
    study: StudyRow, row: TrialRow, rungs: Sequence[EvaluationRow], now: float
) -> Table:
    facts = _facts()
    if row.value is not None:
        at = "" if row.best_progress is None else f", at {row.best_progress} %"
        facts.add_row(study.metric or "value", f"{words.score(row.value)}{at}")
    if row.metrics:
        facts.add_row("validation", _metrics(row.metrics))
    if (folds := words.folds(row.flags)) is not None:
        facts.add_row("folds", folds)
    curve = [rung.metrics[study.metric] for rung in rungs if study.metric in rung.metrics]
    if len(curve) > 1:
        facts.add_row("curve", words.sparkline(curve, 40))
    if row.phase is None:
        facts.add_row("last step", reached(row))
    else:
        facts.add_row("progress", f"{row.last_progress or 0} % of its {_steps(row)}")
    if row.is_alive(now):
        facts.add_row("run by", owner_in_words(row.lease_owner))
    if row.device and row.device != "none":
        facts.add_row("on", f"{row.device} of {row.host}" if row.host else row.device)
    times = f"begun {words.moment(row.started)}"
    if row.ended is not None:
        times += f", ended {words.moment(row.ended)}"
    if row.seconds:
        times += f", {words.duration(row.seconds)} on the device"
    facts.add_row("time", times)
    if row.samples_per_second:
        speed = f"{row.samples_per_second:.0f} examples/s, {words.size(row.peak_memory)} at most"
        facts.add_row("cost", speed)
    if row.attempts > 1:
        facts.add_row("attempts", str(row.attempts))
    if row.seed is not None:
        facts.add_row("seed", str(row.seed))
    return facts


def _facts() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    return table


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {words.score(value)}" for name, value in metrics.items())


def _steps(row: TrialRow) -> str:
    return "schedule" if row.horizon is None else words.plural(row.horizon, "step")
