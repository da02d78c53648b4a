"""Rows of the store as tables for a terminal: quiet, aligned, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from sft_tune.spec.faults import SHORT, from_flags
from sft_tune.spec.function_task import is_function
from sft_tune.spec.tasks import TASKS, TRAINING_OF_SOME
from sft_tune.store.rows import EvaluationRow, StudyRow, TrialRow
from sft_tune.view import words
from sft_tune.view.grid import Column, Grid

STYLES = {
    "crashed": "red",
    "stalled": "red",
    "out of memory": "red",
    "diverged": "yellow",
    "interrupted": "yellow",
    "running": "green",
}
FINISHED = ("COMPLETE", "PRUNED", "FAIL")
WIDEST = 28
"""Columns of a terminal that a setting takes in the table of trials at the most."""


def plain_table(*, gap: int = 2, **options: Any) -> Table:
    """Return a table without lines, its columns ``gap`` spaces apart."""
    return Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim", **options)


def in_lines(name: str) -> str:
    """Return ``name`` as a title on several lines: it stays whole, and its column gets narrow."""
    return name.replace("_", "_\n").replace(".", ".\n").replace(" ", "\n")


def state_of_study(row: StudyRow, now: float, *, served: bool = False) -> str:
    """Return in a word or two what becomes of the study at the second ``now`` since 1970.

    With ``served`` a runner lives that may take up a study of the database that nobody runs.
    """
    if not row.managed:
        return "Optuna's alone"
    if row.optuna_study_id is None:
        return "Optuna's side is gone"
    if row.is_running(now):
        return "running"
    if row.wanted == "paused":
        return "paused"
    if row.ended:
        return f"finished: {row.ended}"
    return "waiting" if row.wanted is None and (served or not row.trials) else "stopped"


def state_of_trial(row: TrialRow, now: float) -> str:
    """Return in a word or three why the trial ended, or what it does at ``now``."""
    if row.duplicate_of is not None:
        return f"duplicate of {row.duplicate_of}"
    if row.reason is not None:
        return words.REASONS.get(row.reason, row.reason)
    if row.state in FINISHED:
        return {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed"}[row.state]
    if row.phase is None or row.state == "WAITING":
        return row.state.lower()
    return "running" if row.is_alive(now) else "interrupted"


def reached(row: TrialRow) -> str:
    """Return the last rung that the trial reached; of one that is not ours, the step as it was."""
    if row.last_progress is None:
        return words.NOTHING
    return str(row.last_progress) if row.phase is None else f"{row.last_progress} %"


def done_of(row: StudyRow) -> int:
    """Return how many trials of the study have ended."""
    return sum(row.states.get(state, 0) for state in FINISHED)


def studies_table(
    rows: Sequence[StudyRow], console: Console, now: float, *, served: bool = False
) -> RenderableType:
    """Return every study on a line, as many of its columns as ``console`` has room for.

    With ``served`` a runner lives (see `state_of_study`).
    """
    states = [state_of_study(row, now, served=served) for row in rows]
    trials = [
        f"{done_of(row)} of {row.max_trials}" if row.max_trials else str(done_of(row))
        for row in rows
    ]
    bold, dim = [Style(bold=True)] * len(rows), [Style(dim=True)] * len(rows)
    coloured = [Style.parse(STYLES.get(state, "")) for state in states]
    metrics = [row.metric or words.NOTHING for row in rows]
    columns = [
        Column("study", [row.name for row in rows], right=False, styles=bold),
        Column("state", states, right=False, styles=coloured),
        Column("trials", trials),
        Column("metric", metrics, right=False),
        Column("best", [words.score(row.best) for row in rows]),
        Column("time", [words.duration(row.active_at(now)) for row in rows]),
        Column("begun", [words.moment(row.created) for row in rows], right=False, styles=dim),
    ]
    shown = list(columns)
    while len(shown) > 2 and Grid(shown).width > console.width:
        shown.pop()
    fitting = Grid(shown, gives_way=0)
    if len(shown) == len(columns):
        return fitting
    hidden = ", ".join(column.title for column in columns[len(shown) :])
    return Group(fitting, Text(f"\nno room for {hidden}; --json has all", style="dim"))


def searched(rows: Sequence[TrialRow]) -> list[str]:
    """Return the names of the parameters of ``rows``, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row.params))


def best_so_far(rungs: Sequence[EvaluationRow], metric: str, *, maximize: bool) -> dict[int, float]:
    """Return the best of ``rungs`` by the number of their trial, for trials that have not ended.

    Rungs on a part of the validation split say nothing of the whole, and do not count.
    """
    better = max if maximize else min
    so_far: dict[int, float] = {}
    for rung in rungs:
        value = rung.metrics.get(metric)
        if value is not None and value == value and rung.examples is None:
            so_far[rung.number] = better(value, so_far.get(rung.number, value))
    return so_far


def titles_of(rows: Sequence[TrialRow], metric: str) -> tuple[str, str]:
    """Return what the values of ``rows`` are called, and how far each trial came.

    Another program's value is what it says, which need not be the best.
    """
    ours = any(row.phase is not None for row in rows)
    return (f"best {metric}", "reached") if ours else (metric, "step")


def trials_table(
    rows: Sequence[TrialRow],
    console: Console,
    *,
    metric: str,
    now: float,
    best: int | None = None,
    so_far: Mapping[int, float] = MappingProxyType({}),
) -> RenderableType:
    """Return every trial on a line, as many of its parameters as ``console`` has room for.

    Args:
        rows: the trials, in the order to show.
        console: decides the width.
        metric: name of the objective.
        now: seconds since 1970.
        best: number of the trial that is set off.
        so_far: the best values of trials that have not ended, by number.
    """
    names = searched(rows)
    params = [row.params for row in rows]
    states = [state_of_trial(row, now) for row in rows]
    fixed = _trial_columns(rows, states, metric, so_far)
    settings = {
        name: [words.setting(own[name], 3) if name in own else words.NOTHING for own in params]
        for name in names
    }
    place = next((at for at, row in enumerate(rows) if row.number == best), None)

    def grid(shown: Sequence[str], title: Callable[[str], str], gap: int) -> Grid:
        searched_for = [Column(title(name), settings[name], most=WIDEST) for name in shown]
        own = [one._replace(title=title(one.title)) if one.right else one for one in fixed]
        return Grid([*own, *searched_for], gap=gap, bold=place, gives_way=1)

    fitting = grid(names, str, 2)
    if fitting.width <= console.width:
        return fitting
    left = list(names)
    while left and (fitting := grid(left, in_lines, 1)).width > console.width:
        left.pop()
    if not left:
        fitting = grid([], in_lines, 2)
    if len(left) == len(names):
        return fitting
    hidden = ", ".join(names[len(left) :])
    return Group(fitting, Text(f"\nno room for {hidden}; --format csv has all", style="dim"))


def _trial_columns(
    rows: Sequence[TrialRow], states: Sequence[str], metric: str, so_far: Mapping[int, float]
) -> list[Column]:
    """Return the columns that every table of trials has."""
    known = {state: Style.parse(STYLES.get(state, "")) for state in set(states)}
    values = [row.value if row.value is not None else so_far.get(row.number) for row in rows]
    value_title, progress_title = titles_of(rows, metric)
    ended = [_with_faults(state, row) for state, row in zip(states, rows, strict=True)]
    return [
        Column("trial", [str(row.number) for row in rows]),
        Column("ended as", ended, right=False, styles=[known[state] for state in states]),
        Column(value_title, [words.score(value) for value in values]),
        Column(progress_title, [reached(row) for row in rows]),
        Column("time", [words.duration(row.took or None) for row in rows]),
    ]


def _with_faults(state: str, row: TrialRow) -> str:
    """Return ``state`` with what went wrong, where it does not say so itself."""
    names = [SHORT.get(fault.name, fault.name) for fault in from_flags(row.flags)]
    return ", ".join([state, *(name for name in names if name != "diverging")])


def rungs_table(rows: Sequence[EvaluationRow], metric: str | None) -> Table:
    """Return a trial's rungs, a line each; the objective ``metric`` is the first of the metrics."""
    table = plain_table()
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    names.sort(key=lambda name: name != metric)
    in_part = any(row.examples is not None for row in rows)
    before = ("at", "epoch", "step", "train loss", *(["measured on"] if in_part else []))
    for name in (*before, *names, "learning rate", "gradient", "time"):
        style = "bold" if name == metric else ""
        title = "val loss" if name == "loss" else name  # beside that of training
        table.add_column(in_lines(title), justify="right", style=style, vertical="bottom")
    for row in rows:
        metrics = row.metrics
        table.add_row(
            f"{row.progress} %",
            words.number(row.epoch, 3),
            words.number(row.step),
            words.score(row.train_loss),
            *(["all" if row.examples is None else str(row.examples)] if in_part else []),
            *(words.score(metrics.get(name)) for name in names),
            words.number(row.learning_rate, 3),
            words.number(row.gradient_norm, 3),
            words.duration(row.seconds),
        )
    return table


def watched_table(rows: Sequence[EvaluationRow]) -> Table | None:
    """Return what was watched between a trial's rungs, a line each; None where nothing was."""
    if all(row.gradient_norm_max is None for row in rows):
        return None
    table = plain_table()
    names = ("at", "gradient median", "gradient max", "update / weights", "examples/s", "memory")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        speed = row.samples_per_second
        table.add_row(
            f"{row.progress} %",
            words.number(row.gradient_norm, 3),
            words.number(row.gradient_norm_max, 3),
            words.number(row.update_ratio, 2),
            words.NOTHING if speed is None else f"{speed:.0f}",
            words.size(row.memory),
        )
    return table


def configuration(
    config: Mapping[str, Any] | None,
    params: Mapping[str, Any],
    default: Mapping[str, Any] | None,
) -> RenderableType:
    """Return a trial's configuration: what is searched against the default, then what is fixed.

    Args:
        config: the complete configuration (a `TrialConfig` as a mapping); None: unknown.
        params: the trial's point of the space.
        default: the default point; None: unknown.
    """
    parts: list[RenderableType] = []
    if params:
        parts.append(_searched_table(params, default))
    if config is None:
        return Group(*parts)
    fixed = fixed_settings(config, params)
    if fixed:
        parts += [""] if parts else []
        parts += [Text("fixed", style="dim"), Text(words.settings(fixed))]
    return Group(*parts)


def _searched_table(params: Mapping[str, Any], default: Mapping[str, Any] | None) -> Table:
    table = plain_table()
    table.add_column("searched", overflow="fold")
    table.add_column("value", justify="right", overflow="fold")
    if default is not None:
        table.add_column("default", justify="right", style="dim", overflow="fold")
    for name, value in params.items():
        same = default is not None and name in default and default[name] == value
        cells: list[RenderableType] = [name, Text(words.setting(value), "" if same else "bold")]
        if default is not None:
            was = words.setting(default[name]) if name in default else words.NOTHING
            cells.append("same" if same else was)
        table.add_row(*cells)
    return table


def fixed_settings(config: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide a trial beside ``params``, its point of the space.

    What its task or its other settings give no effect is left out, as what has no value.
    """
    given = flat_settings(config)
    # It needs the whole study file's rules, which a list of studies does not wait for.
    from sft_tune.spec.techniques import unread

    ignored: set[str] = set()
    task = config.get("task", "")
    if not is_function(task):
        ignored = unread(given)
        if task in TASKS:
            ignored |= TRAINING_OF_SOME - set(TASKS[task].training)
    left_out = ignored | set(params)
    return {k: v for k, v in given.items() if v is not None and k not in left_out}


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return model and training settings of a configuration under the names of the space."""
    model = {f"model.{name}": value for name, value in config.get("model", {}).items()}
    if is_function(config.get("task", "")):
        return dict(config.get("arguments", {}))
    return {**model, **config.get("training", {})}
