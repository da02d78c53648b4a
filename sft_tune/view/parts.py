"""Parts of the screens that show how far a study is; `live` and `status` are made of them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sft_tune.view import words
from sft_tune.view.progress import Goal, Past, Running, StudyProgress

STYLES = {
    "crashed": "red",
    "stalled": "red",
    "out_of_memory": "red",
    "diverged": "yellow",
}
WIDEST = 110
"""Columns beyond which the two ends of a line lose sight of each other."""

_LABEL = 9
_STEPS = 1000


def head(progress: StudyProgress, now: float) -> Table:
    """Return which study this is, what it is after and how long it has run."""
    goal = progress.goal
    spent = words.duration(progress.elapsed(now))
    if goal.hours:
        spent += f" of {words.duration(goal.hours * 3600)}"
    wanted = f"{'maximize' if goal.maximize else 'minimize'} {goal.metric} on validation"
    if goal.target is not None:
        wanted += f", until {words.number(goal.target)}"
    table = Table.grid(expand=True, padding=(0, 2))
    table.add_column(overflow="ellipsis", no_wrap=True)
    table.add_column(justify="right", overflow="ellipsis", no_wrap=True)
    table.add_row(Text(goal.study, style="bold"), Text(goal.storage, style="dim"))
    table.add_row(wanted, spent)
    return table


def labelled(label: str, content: RenderableType) -> Table:
    """Return ``content`` with ``label`` to its left."""
    table = Table.grid(expand=True)
    table.add_column(width=_LABEL, style="dim")
    table.add_column(ratio=1, overflow="fold")
    table.add_row(label, content)
    return table


def budget(progress: StudyProgress, now: float, width: int) -> Table:
    """Return how much of the budget is used, as a bar, a count and the time left."""
    goal = progress.goal
    parts: list[RenderableType] = []
    share = progress.share_done(now)
    if share is not None:
        parts.append(_bar(share, max(10, width // 2 - _LABEL)))
    parts.append(Text(f"{progress.done} of {goal.trials}" if goal.trials else str(progress.done)))
    left = progress.time_left(now)
    if left:
        parts.append(Text(f"about {words.duration(left)} left", "dim"))
    return labelled("trials", _row(*parts))


def best_lines(progress: StudyProgress, best: Past) -> Group:
    """Return the best trial: its value, its lead on the default, and its point of the space."""
    line = Text.assemble((words.score(best.value), "bold"), f"  trial {best.number}")
    default = progress.default_value
    if best.params == progress.goal.default:
        line.append("  the default configuration", "dim")
    elif default is not None and best.value is not None:
        line.append(f"  {words.gain(best.value - default)}", "green")
        line.append(f" on the default's {words.score(default)}", "dim")
    return Group(line, Text(words.settings(best.params)))


def running_line(trial: Running, now: float, width: int) -> RenderableType:
    """Return a trial that runs in one line: how far it is, and its curve."""
    name = f"trial {trial.number}" + (f", attempt {trial.attempt}" if trial.attempt > 1 else "")
    parts: list[RenderableType] = [
        Text(name),
        _bar(trial.progress / 100, max(10, width // 5)),
        Text(f"{trial.progress:3d} %"),
    ]
    if trial.values:
        parts.append(Text(words.sparkline(trial.values, 10), style="cyan"))
        parts.append(Text(words.score(trial.values[-1])))
    parts.append(Text(words.duration(now - trial.since), style="dim"))
    return _row(*parts)


def running_lines(goal: Goal, trial: Running, now: float, width: int) -> Group:
    """Return a trial that runs: how far it is, its curve, its point of the space, its metrics."""
    others = {name: v for name, v in trial.metrics.items() if name != goal.metric}
    if trial.train_loss is not None:
        others["train loss"] = trial.train_loss
    told = "  ".join(f"{name} {words.score(v)}" for name, v in others.items())
    numbers = Text(told or "not yet evaluated", style="dim")
    if trial.faults:
        numbers.append(f"  {', '.join(trial.faults)}", "yellow")
    return Group(
        running_line(trial, now, width),
        Text(words.settings(trial.params) or "the default configuration"),
        numbers,
    )


def ended_table(goal: Goal, trials: Sequence[Past]) -> Table:
    """Return trials that have ended, a line each, with where they differ from the default."""
    table = Table.grid(padding=(0, 2))
    for justify in ("right", "left", "right", "right"):
        table.add_column(justify="right" if justify == "right" else "left", no_wrap=True)
    table.add_column()
    for past in trials:
        reason = words.REASONS.get(past.reason, past.reason)
        if past.reason not in words.GOOD:
            reason += f" at {past.progress} %"
        # Only the last column may give way on a narrow screen, and to one line.
        what = Text(_difference(goal, past), "dim", no_wrap=True, overflow="ellipsis")
        table.add_row(
            str(past.number),
            Text(reason, style=STYLES.get(past.reason, "")),
            words.NOTHING if past.value is None else f"best {words.score(past.value)}",
            Text(words.duration(past.seconds or None), style="dim"),
            what,
        )
    return table


def _difference(goal: Goal, past: Past) -> str:
    """Return what went wrong with a trial, and where its point differs from the default one."""
    same = [name for name, value in past.params.items() if goal.default.get(name, ...) == value]
    what = words.settings(past.params, without=same) or "the default configuration"
    return f"{', '.join(past.faults)}; {what}" if past.faults else what


def _bar(share: float, width: int) -> ProgressBar:
    return ProgressBar(
        total=_STEPS,
        completed=round(share * _STEPS),
        width=width,
        # Rich's own colours are those of an alarm.
        complete_style="cyan",
        finished_style="cyan",
    )


def _row(*parts: RenderableType) -> Table:
    table = Table.grid(padding=(0, 2))
    for _ in parts:
        table.add_column(no_wrap=True)
    table.add_row(*parts)
    return table
