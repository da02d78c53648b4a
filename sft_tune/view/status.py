"""How far a study is, from the database: read into `progress`, drawn once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from sft_tune.store.newcomers import Newcomers
from sft_tune.store.retry import retrying
from sft_tune.store.rows import EvaluationRow, StudyRow, TrialRow
from sft_tune.store.runners import Runner
from sft_tune.view import parts, words
from sft_tune.view.progress import Goal, Others, Past, StudyProgress
from sft_tune.view.tables import FINISHED, state_of_study, state_of_trial

if TYPE_CHECKING:
    from sft_tune.spec.space import Value
    from sft_tune.store.database import Database
    from sft_tune.store.standing import Tally

MOST_FAILURES = 3
FAILURES = ("crashed", "stalled", "out_of_memory", "diverged")
_REASON_OF_STATE = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "crashed"}
_WHY = {
    "trials": "every trial of the budget is done",
    "hours": "the budget's time is used",
    "target": "the target is reached",
}


def goal_of(row: StudyRow, storage: str, default: Mapping[str, Value], now: float) -> Goal:
    """Return what the study ``row`` is after at ``now``; ``storage`` fit to be shown."""
    return Goal(
        study=row.name,
        metric=row.metric or "value",
        maximize=row.direction == "maximize",
        storage=storage,
        default=default,
        trials=row.max_trials,
        hours=row.max_hours,
        target=row.target,
        seconds_before=row.active_at(now) or 0.0,
    )


def past_of(row: TrialRow) -> Past:
    """Return what progress keeps of the ended trial ``row``."""
    reason = row.reason or _REASON_OF_STATE[row.state]
    if row.duplicate_of is not None:
        reason = "duplicate"
    return Past(
        row.number,
        reason,
        row.value,
        row.seconds or 0.0,
        row.params,
        _reached(reason, row.last_progress),
        row.note or "",
    )


def _reached(reason: str, progress: int | None) -> int:
    """Return how far a trial came, in percent, where ``progress`` may not be known."""
    unknown = 100 if reason in words.GOOD else 0
    return unknown if progress is None else progress


def replay(progress: StudyProgress, rows: Sequence[TrialRow]) -> None:
    """Note every trial of ``rows`` that has ended, in the order in which they did."""
    ended = [row for row in rows if row.state in FINISHED]
    for row in sorted(ended, key=lambda r: (r.ended is None, r.ended, r.number)):
        progress.end(past_of(row))


def others_of(db: Database, study: str, rows: Sequence[TrialRow]) -> Others:
    """Return what gives a watcher, which knows of ``rows``, the trials that others have ended."""
    ended = Newcomers(db, study, [row.number for row in rows if row.state in FINISHED])

    def others(number: int) -> list[Past]:
        ended.note(number)
        return [past_of(row) for row in retrying(ended.look)]

    return others


def progress_of(
    goal: Goal,
    rows: Sequence[TrialRow],
    rungs: Mapping[int, Sequence[EvaluationRow]],
    now: float,
    tallies: Sequence[Tally] | None = None,
) -> StudyProgress:
    """Return the progress of a study that is or was run by others.

    Args:
        goal: what it is after.
        rows: its trials; with ``tallies`` those of `standing`.
        rungs: the rungs of those that run, by number.
        now: seconds since 1970.
        tallies: its ended trials, counted; None: they are in ``rows``.
    """
    progress = StudyProgress(goal, now)
    if tallies is None:
        replay(progress, rows)
    else:
        for tally in tallies:
            reached = _reached(tally.reason, tally.progress)
            progress.count(tally.reason, tally.trials, tally.seconds, reached)
        for row in rows:
            if row.state in FINISHED:
                progress.judge(past_of(row))
    alive = [row for row in rows if row.state == "RUNNING" and row.is_alive(now)]
    for slot, row in enumerate(alive):
        own = rungs.get(row.number, ())
        spent = own[-1].seconds if own else None
        if spent is None:
            spent = now - row.started.timestamp() if row.started else 0.0
        progress.start(row.number, slot, row.params, row.attempts, now - spent)
        for rung in own:
            value = rung.metrics.get(goal.metric)
            if value is not None:
                loss = rung.train_loss if rung.train_loss is not None else float("nan")
                progress.reach(row.number, rung.progress, value, rung.metrics, loss)
    return progress


def draw_status(
    study: StudyRow,
    progress: StudyProgress,
    rows: Sequence[TrialRow],
    runners: Sequence[Runner],
    now: float,
    width: int,
    tallies: Sequence[Tally] | None = None,
    failed: int | None = None,
    fresh: str = "",
) -> RenderableType:
    """Return the state of ``study`` at ``now``, ``width`` columns wide.

    Args:
        study: the study.
        progress: of it.
        rows: its trials; with ``tallies`` those of `standing`.
        runners: those that serve its database.
        now: seconds since 1970.
        width: columns.
        tallies: its ended trials, counted; None: they are in ``rows``.
        failed: so many of the last trials failed that it was given up; None: it was not.
        fresh: what fresh seeds say of the best, in words; empty: nothing yet.
    """
    shown: list[RenderableType] = [
        parts.head(progress, now),
        "",
        parts.labelled("state", _state(study, rows, now, failed, served=bool(runners))),
        parts.budget(progress, now, width),
    ]
    if lines := _runners(rows, runners, now):
        shown.append(parts.labelled("runners", lines))
    if speed := _speed(progress, progress.elapsed(now), rows, tallies):
        shown.append(parts.labelled("speed", Text(speed)))
    if progress.counts:
        shown.append(parts.labelled("ended", words.reasons(progress.counts)))
    if left := [row for row in rows if state_of_trial(row, now) == "interrupted"]:
        shown.append(parts.labelled("waiting", _interrupted(left)))
    if progress.best is not None:
        shown += ["", parts.labelled("best", parts.best_lines(progress, progress.best))]
    if fresh:
        shown.append(parts.labelled("confirm", fresh))
    for trial in progress.running.values():
        shown += ["", parts.labelled("now", parts.running_lines(progress.goal, trial, now, width))]
    failures = [row for row in rows if row.reason in FAILURES][-MOST_FAILURES:]
    if failures:
        shown += ["", parts.labelled("failures", _failures(failures))]
    return Group(*shown)


def _state(
    study: StudyRow, rows: Sequence[TrialRow], now: float, failed: int | None, *, served: bool
) -> Text:
    state = state_of_study(study, now, served=served)
    if state == "paused":
        return Text(f"paused; `sft-tune resume {study.name}` lets it go on", "yellow")
    if state == "running":
        held = {row.lease_owner for row in rows if row.is_alive(now)}
        # A trial may have ended since the study was read.
        held = held or {owner for owner, until in study.leases if until > now}
        owners = sorted(map(owner_in_words, held))
        return Text.assemble(("running", "green"), f" on {', '.join(owners)}")
    if study.ended:
        return Text(f"finished: {_WHY.get(study.ended, study.ended)}")
    if not study.managed:
        return Text(state)
    if study.wanted is None and not rows:
        return Text(f"registered; waiting for `sft-tune worker`, or {_start(study)}")
    if state == "waiting" and failed is None:
        return Text(f"waiting for a slot of `sft-tune worker`, or {_start(study)}")
    if study.wanted == "stopped":
        return Text(f"stopped; `sft-tune resume {study.name}` or {_start(study)} lets it go on")
    if failed is not None:
        why = f": {words.plural(failed, 'trial')} in a row failed (budget.failures)"
        return Text(f"stopped{why}; once that is mended, {_start(study)} goes on")
    return Text(f"{state}; {_start(study)} goes on")


def _start(study: StudyRow) -> str:
    """Return what runs ``study``, in words."""
    return "`sft-tune start` with its file" if study.has_file else "the program that called `tune`"


def _runners(rows: Sequence[TrialRow], runners: Sequence[Runner], now: float) -> Text | None:
    """Return a line for each runner that serves the database: its slots, and what is on them."""
    busy: dict[str, list[TrialRow]] = defaultdict(list)
    for row in rows:
        if row.lease_owner is not None and row.is_alive(now):
            busy[row.lease_owner].append(row)
    lines = []
    for runner in runners:
        own = sorted(busy.get(runner.owner, ()), key=lambda row: row.device or "")
        trials = ", ".join(f"trial {row.number} on {row.device}" for row in own)
        left = max((row.lease_expires or now for row in own), default=now) - now
        lease = f" (lease for {words.duration(left)} more)" if own else ""
        slots = words.plural(len(runner.slots), "slot")
        engine = "" if runner.engine == "local" else f", {runner.engine}"
        lines.append(
            f"{owner_in_words(runner.owner)}, {slots}{engine}: "
            f"{trials or 'nothing of this study'}{lease}"
        )
    return Text("\n".join(lines)) if lines else None


def _speed(
    progress: StudyProgress,
    active: float,
    rows: Sequence[TrialRow],
    tallies: Sequence[Tally] | None,
) -> str | None:
    """Return how fast the study went in ``active`` seconds, by its ended trials; None: none has."""
    if tallies is None:
        ended = [row for row in rows if row.state in FINISHED and row.samples_per_second]
        seconds = sum(row.seconds or 0.0 for row in ended)
        samples = sum((row.samples_per_second or 0.0) * (row.seconds or 0.0) for row in ended)
    else:
        seconds = sum(tally.timed for tally in tallies)
        samples = sum(tally.samples for tally in tallies)
    if active <= 0 or seconds <= 0:
        return None
    return (
        f"{words.rate(3600 * progress.done / active)} trials an hour, "
        f"{words.rate(samples / seconds)} training examples a second in each"
    )


def owner_in_words(owner: str | None) -> str:
    """Return the owner of a lease (``host:pid:start time``) for a person to find it."""
    if owner is None:
        return "an unknown machine"
    parts_ = owner.rsplit(":", 2)
    return f"{parts_[0]} (process {parts_[1]})" if len(parts_) == 3 else owner


def _interrupted(rows: Sequence[TrialRow]) -> Text:
    """Return which trials a runner has left, or was killed with, in a line."""
    names = ", ".join(f"trial {row.number} at {row.last_progress or 0} %" for row in rows)
    return Text(f"{names}: interrupted, the next runner goes on", "yellow")


def _failures(rows: Sequence[TrialRow]) -> Text:
    lines = []
    for row in rows:
        reason = words.REASONS.get(row.reason or "", row.reason or "")
        first = (row.note or "").strip().split("\n")[0]
        lines.append(f"trial {row.number} {reason}" + (f": {first}" if first else ""))
    return Text("\n".join(lines))


def status_json(study: StudyRow, progress: StudyProgress, now: float) -> dict[str, Any]:
    """Return what a program wants to know of a study that it watches."""
    best = progress.best
    return {
        "best": None
        if best is None
        else {"number": best.number, "value": best.value, "params": best.params},
        "default_value": progress.default_value,
        "reasons": progress.counts,
        "trials_ended": progress.done,
        "seconds_left": progress.time_left(now),
        "running_trials": [
            {
                "number": trial.number,
                "progress": trial.progress,
                "value": trial.values[-1] if trial.values else None,
                "params": trial.params,
                "attempt": trial.attempt,
            }
            for trial in progress.running.values()
        ],
    }
