"""What a study found, in numbers: the default against the best, the best of each model, the ends.

Computed by `summarize`, drawn by `draw_summary`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_tune.spec.config import default_params
from sft_tune.spec.space import Value
from sft_tune.spec.study import StudySpec
from sft_tune.store.rows import TrialRow
from sft_tune.view import noise, words
from sft_tune.view.finalists import Standings
from sft_tune.view.finalists_words import fresh_in_words
from sft_tune.view.tables import plain_table


class Choice(NamedTuple):
    """What was reached with one choice of a parameter.

    Attributes:
        choice: the parameter's value.
        default: value of the default configuration with this choice; None where not tried.
        value: the best value of any trial, pruned ones at what they had reached; None: no trial.
        number: the trial that reached it.
        progress: how far that trial went, in percent.
        trials: how many had this choice.
    """

    choice: Value
    default: float | None
    value: float | None
    number: int | None
    progress: int | None
    trials: int


class Summary(NamedTuple):
    """What a study found.

    Attributes:
        study: its name.
        metric: the objective, on validation.
        default: value of the default configuration; None where it has not completed.
        best: value of the best trial; None where none has completed.
        number: the best trial.
        gain: how much better the best is than the default, positive when better.
        relative: for a score: the share of the default's errors (1 - score) that is gone; for a
            loss: the share of the loss that is gone. None where that has no meaning.
        examples: how many validation examples the values are of; None: unknown.
        in_noise: whether chance alone may have made the gain, so far as that is known.
        params: the best trial's point of the space, and the default's value of each.
        choices: for each model parameter with choices, the best value of each.
        counts: trials by why they ended, duplicates as such.
        seconds: time of all trials on the device.
        active_seconds: time that the study ran.
        checkpoint: path of the best weights, where they are kept.
        fresh: what fresh seeds say of the leader and of the best, in words; empty: nothing yet.
        leader: the trial that leads over fresh seeds and can be exported, if it is another.
        to_confirm: whether the best is still to be trained over fresh seeds, and not by itself.
    """

    study: str
    metric: str
    default: float | None
    best: float | None
    number: int | None
    gain: float | None
    relative: float | None
    examples: int | None
    in_noise: bool
    params: tuple[tuple[str, Value, Value], ...]
    choices: tuple[tuple[str, tuple[Choice, ...]], ...]
    counts: dict[str, int]
    seconds: float
    active_seconds: float
    checkpoint: str | None
    fresh: str = ""
    leader: int | None = None
    to_confirm: bool = True


def summarize(
    spec: StudySpec,
    rows: Sequence[TrialRow],
    active_seconds: float,
    examples: int | None = None,
    found: Standings | None = None,
) -> Summary:
    """Return the summary of the study ``spec`` whose trials are ``rows``.

    Args:
        spec: the study.
        rows: its trials.
        active_seconds: time that it ran.
        examples: in its validation split; None: unknown.
        found: how its finalists stand; None where none was trained.
    """
    maximize = spec.direction == "maximize"
    finished = [r for r in rows if r.state == "COMPLETE" and r.duplicate_of is None]
    best = _best(finished, maximize)
    default_point = default_params(spec)
    default = next((r for r in finished if dict(r.params) == default_point), None)
    gain = relative = None
    in_noise = False
    if best is not None and best.value is not None and default is not None:
        gain, relative = _gain(spec, default.value, best.value)
        if gain and examples and default.value is not None:
            in_noise = noise.is_noise(spec.objective.metric, best.value, default.value, examples)
    counts = Counter(
        "duplicate" if r.duplicate_of is not None else r.reason for r in rows if r.reason
    )
    return Summary(
        study=spec.name,
        metric=spec.objective.metric,
        default=None if default is None else default.value,
        best=None if best is None else best.value,
        number=None if best is None else best.number,
        gain=gain,
        relative=relative,
        examples=examples,
        in_noise=in_noise,
        params=()
        if best is None
        else tuple((name, v, default_point.get(name)) for name, v in best.params.items()),
        choices=tuple(_choices(spec, rows)),
        counts=dict(counts),
        seconds=sum(r.seconds or 0.0 for r in rows),
        active_seconds=active_seconds,
        checkpoint=None if best is None else best.checkpoint,
        fresh="" if found is None else fresh_in_words(found),
        leader=None if found is None else _exportable(found),
        to_confirm=spec.confirm is None
        and (found is None or found.open > 0 or found.searched is None),
    )


def _exportable(found: Standings) -> int | None:
    """Return the trial that leads in place of the winner, where its weights are kept."""
    is_there = found.overtaken and found.leader.checkpoint is not None
    return found.leader.number if is_there else None


def _best(rows: Sequence[TrialRow], maximize: bool) -> TrialRow | None:
    """Return the row with the best value; of equals the first."""
    best: TrialRow | None = None
    for row in rows:
        if row.value is None:
            continue
        if best is None or best.value is None:
            best = row
        elif row.value > best.value if maximize else row.value < best.value:
            best = row
    return best


def _gain(spec: StudySpec, default: float | None, best: float) -> tuple[float | None, float | None]:
    if default is None:
        return None, None
    metric = spec.objective.metric
    gain = best - default if spec.direction == "maximize" else default - best
    whole = default if metric == "loss" else 1 - default
    # Matthews' coefficient goes below 0, so that what it lacks to 1 is no share of errors.
    has_meaning = whole > 0 and metric != "matthews"
    return gain, gain / whole if has_meaning else None


def _choices(spec: StudySpec, rows: Sequence[TrialRow]) -> list[tuple[str, tuple[Choice, ...]]]:
    """Compare the choices of each `model` parameter, pruned trials included.

    A choice that the pruner cut every time still shows how far it came.
    """
    tried = [r for r in rows if r.state in ("COMPLETE", "PRUNED") and r.duplicate_of is None]
    found = []
    for name, parameter in spec.space.items():
        if name.startswith("model.") and parameter.values is not None:
            choices = [_choice(spec, tried, name, value) for value in parameter.values]
            found.append((name, tuple(choices)))
    return found


def _choice(spec: StudySpec, tried: Sequence[TrialRow], name: str, value: Value) -> Choice:
    rows = [r for r in tried if name in r.params and r.params[name] == value]
    best = _best(rows, spec.direction == "maximize")
    point = default_params(spec, {name: value})
    as_default = (r.value for r in rows if dict(r.params) == point and r.state == "COMPLETE")
    return Choice(
        choice=value,
        default=next(as_default, None),
        value=None if best is None else best.value,
        number=None if best is None else best.number,
        progress=None if best is None else best.last_progress,
        trials=len(rows),
    )


def draw_summary(summary: Summary, options: str = "") -> RenderableType:
    """Return ``summary`` as lines and small tables, with the commands that lead on.

    Args:
        summary: what `summarize` made.
        options: what those commands need besides, such as `` --storage URL``.
    """
    parts: list[RenderableType] = [_headline(summary)]
    if summary.fresh:
        parts.append(Text(summary.fresh))
    elif summary.best is not None and summary.examples:
        told = noise.measured(summary.metric, summary.best, summary.examples)
        parts.append(Text(told, "dim"))
    parts.append("")
    if summary.params:
        title = f"best configuration (trial {summary.number})"
        parts += [Text(title, "dim"), _best_table(summary), ""]
    for name, choices in summary.choices:
        title = f"{summary.metric} by {name}"
        parts += [Text(title, "dim"), _choice_table(choices), ""]
    parts += [_facts(summary), "", _next(summary, options)]
    return Group(*parts)


def _headline(summary: Summary) -> Text:
    if summary.best is None:
        return Text(f"{summary.study}: no trial has completed yet", style="bold")
    text = Text.assemble((f"{summary.study}: {summary.metric} ", "bold"))
    if summary.number is not None and summary.gain is None:
        text.append(f"{words.score(summary.best)} with trial {summary.number}", "bold")
        return text
    text.append(f"{words.score(summary.default)} → {words.score(summary.best)}", "bold")
    good = summary.gain and not summary.in_noise
    text.append(f"  {words.gain(summary.gain)}", "bold green" if good else "")
    text.append(_in_words(summary), "" if summary.in_noise else "dim")
    return text


def _in_words(summary: Summary) -> str:
    if not summary.gain:
        return "  nothing tried beats the default configuration"
    if summary.in_noise:
        examples = words.plural(summary.examples or 0, "validation example")
        advice = "; confirm before believing" if summary.to_confirm else ""
        return f"  within the noise of {examples}{advice}"
    if summary.relative is None:
        return "  default to tuned, on validation"
    what = "of the loss is gone" if summary.metric == "loss" else "fewer errors"
    if "accuracy" not in summary.metric and summary.metric != "loss":
        what = "of what the default lacks to 1"
    return f"  {summary.relative:.0%} {what}, default to tuned, on validation"


def _best_table(summary: Summary) -> Table:
    table = plain_table()
    table.add_column("", style="")
    table.add_column("tuned", justify="right")
    table.add_column("default", justify="right", style="dim")
    for name, tuned, default in summary.params:
        differs = tuned != default
        table.add_row(
            name,
            Text(words.setting(tuned), style="bold" if differs else ""),
            words.setting(default) if differs else "same",
        )
    return table


def _choice_table(choices: Sequence[Choice]) -> Table:
    table = plain_table()
    table.add_column("", overflow="fold")
    table.add_column("default", justify="right")
    table.add_column("best", justify="right")
    table.add_column("trial", justify="right")
    table.add_column("reached", justify="right", style="dim")
    table.add_column("of trials", justify="right", style="dim")
    for choice in choices:
        table.add_row(
            words.setting(choice.choice),
            words.score(choice.default),
            words.score(choice.value),
            words.NOTHING if choice.number is None else str(choice.number),
            words.NOTHING if choice.progress is None else f"{choice.progress} %",
            str(choice.trials),
        )
    return table


def _facts(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    total = sum(summary.counts.values())
    table.add_row("trials", f"{total}: {words.reasons(summary.counts)}" if total else "none")
    if repeated := summary.counts.get("duplicate", 0):
        saved = words.plural(repeated, "trial")
        table.add_row("reused", f"{saved} took the result of an equal configuration")
    spent = f"{words.duration(summary.active_seconds)}, on the device "
    table.add_row("time", spent + words.duration(summary.seconds))
    if summary.checkpoint is not None:
        table.add_row("weights", words.short_path(summary.checkpoint))
    return table


def _next(summary: Summary, options: str) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_column(style="dim")
    name = f"{summary.study}{options}"
    table.add_row("next", f"sft-tune trials {name}", "every trial in a table")
    if summary.number is not None:
        table.add_row("", f"sft-tune best {name} --yaml", "settings for a study file")
        if summary.to_confirm:
            table.add_row("", f"sft-tune confirm {name}", "is the winner real?")
        if summary.leader is not None:
            export = f"sft-tune export {summary.study} DIR --trial {summary.leader}{options}"
            table.add_row("", export, "the leader over fresh seeds")
    table.add_row("", f"sft-tune dashboard{options}", "Optuna Dashboard in the browser")
    return table
