"""How far a study is: numbers kept up to date by what is heard of its trials. Drawn by `live`."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sft_tune.view.words import GOOD

if TYPE_CHECKING:
    from sft_tune.spec.space import Value

RECENT = 20


@dataclass(frozen=True)
class Goal:
    """What the study is after, and where it stood before this run.

    Attributes:
        study: its name.
        metric: the objective, on validation.
        maximize: whether more of it is better.
        storage: the database, fit to be shown.
        default: the default point of the space.
        trials: the budget's total of trials; None: no limit.
        hours: the budget's hours; None: no limit.
        target: the value at which the study ends; None: no such.
        seconds_before: how long the study ran before this run.
    """

    study: str
    metric: str
    maximize: bool
    storage: str
    default: Mapping[str, Value]
    trials: int | None = None
    hours: float | None = None
    target: float | None = None
    seconds_before: float = 0.0


class Past(NamedTuple):
    """A trial that has ended; ``progress`` in percent is how far it came."""

    number: int
    reason: str
    value: float | None
    seconds: float
    params: Mapping[str, Value]
    progress: int = 100
    note: str = ""
    faults: Sequence[str] = ()


@dataclass
class Running:
    """A trial that runs; ``since`` is the clock's second at which this attempt began."""

    number: int
    slot: int
    params: Mapping[str, Value]
    attempt: int
    since: float
    progress: int = 0
    values: list[float] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)
    train_loss: float | None = None
    faults: Sequence[str] = ()


class StudyProgress:
    """What a watcher knows of a study; every time is of one clock, given by the caller."""

    def __init__(self, goal: Goal, now: float | None = None) -> None:
        """Know no trial; the study runs from the second ``now`` on, or once `begin` says so."""
        self.goal = goal
        self.running: dict[int, Running] = {}
        self.recent: deque[Past] = deque(maxlen=RECENT)
        self.counts: dict[str, int] = {}
        self.best: Past | None = None
        self.default_value: float | None = None
        self._began = now
        self._seconds = 0.0
        self._reached: Counter[int] = Counter()

    def begin(self, now: float) -> None:
        """Count time from ``now`` on, the first time: what comes before trials is not budgeted."""
        if self._began is None:
            self._began = now

    @property
    def done(self) -> int:
        """Trials that have ended."""
        return sum(self.counts.values())

    def start(
        self, number: int, slot: int, params: Mapping[str, Value], attempt: int, now: float
    ) -> None:
        """Note that a trial was placed."""
        self.running[number] = Running(number, slot, params, attempt, now)

    def reach(
        self,
        number: int,
        progress: int,
        value: float,
        metrics: Mapping[str, float],
        train_loss: float | None,
        faults: Sequence[str] = (),
    ) -> None:
        """Note that a trial was evaluated at ``progress`` percent, and what is wrong with it."""
        trial = self.running.get(number)
        if trial is not None:
            trial.progress = progress
            trial.values.append(value)
            trial.metrics = metrics
            trial.train_loss = train_loss
            trial.faults = faults

    def end(self, past: Past) -> None:
        """Note that a trial has ended."""
        self.running.pop(past.number, None)
        self.recent.append(past)
        self.count(past.reason, 1, past.seconds, past.progress)
        self.judge(past)

    def count(self, reason: str, trials: int, seconds: float, progress: int) -> None:
        """Note that ``trials`` ended so, at ``progress`` percent, in ``seconds`` together."""
        self.counts[reason] = self.counts.get(reason, 0) + trials
        self._seconds += seconds
        self._reached[progress] += trials

    def judge(self, past: Past) -> None:
        """Compare the value of a trial that has ended with the best so far."""
        if past.reason not in GOOD or past.value is None:
            return
        if past.reason != "duplicate" and self.is_better(past.value):
            self.best = past
        if past.params == self.goal.default and self.default_value is None:
            self.default_value = past.value

    def finish(
        self,
        number: int,
        reason: str,
        value: float | None,
        seconds: float,
        params: Mapping[str, Value],
        note: str,
        faults: Sequence[str] = (),
    ) -> Past:
        """Note that a trial has ended where it was; one that did not run here is whole."""
        trial = self.running.get(number)
        reached = 100 if trial is None else trial.progress
        past = Past(number, reason, value, seconds, params, reached, note, faults)
        self.end(past)
        return past

    def is_better(self, value: float) -> bool:
        """Tell whether ``value`` beats the best so far."""
        if self.best is None or self.best.value is None:
            return True
        return value > self.best.value if self.goal.maximize else value < self.best.value

    @property
    def reached_target(self) -> bool:
        """Whether the best so far is as good as the study is to become."""
        target, best = self.goal.target, None if self.best is None else self.best.value
        if target is None or best is None:
            return False
        return best >= target if self.goal.maximize else best <= target

    def elapsed(self, now: float) -> float:
        """Return the seconds that the study has run, earlier runs included."""
        return self.goal.seconds_before + (0.0 if self._began is None else now - self._began)

    def share_done(self, now: float) -> float | None:
        """Return how much of the budget is used, 0 to 1; None where it names no amount.

        Of a budget of trials and hours, the part that is further used: it ends the study.
        """
        shares = []
        if self.goal.trials:
            part = sum(trial.progress / 100 for trial in self.running.values())
            shares.append((self.done + part) / self.goal.trials)
        if self.goal.hours:
            shares.append(self.elapsed(now) / (self.goal.hours * 3600))
        return min(1.0, max(shares)) if shares else None

    def time_left(self, now: float) -> float | None:
        """Return the seconds that are left by what trials have cost so far; None: unknown.

        A trial to come costs the mean of those that ended, pruned and repeated ones included, and
        of what those that run have done: without these it would be the mean of short ones, which
        end first. As many run at once as did on average.
        One that runs goes on at its own pace, beside the others, to where those ended on average
        that came further than it is now. A budget of hours ends sooner, if it does; once the
        target is reached, no trial is to come.
        """
        limits = []
        if self.goal.trials is not None and self.done:
            limits.append(self._until_trials(self.goal.trials, now))
        if self.goal.hours:
            limits.append(max(0.0, self.goal.hours * 3600 - self.elapsed(now)))
        return min(limits) if limits else None

    def _until_trials(self, trials: int, now: float) -> float:
        """Return the seconds until all of ``trials`` have ended."""
        running = list(self.running.values())
        # Trials of one slot are a stack, and share its time.
        beside = Counter(trial.slot for trial in running)
        spent = self._seconds + sum((now - trial.since) / beside[trial.slot] for trial in running)
        work = self.done + sum(trial.progress / self._expected_end(trial) for trial in running)
        elapsed = self.elapsed(now)
        at_once = max(1.0, spent / elapsed) if elapsed > 0 else 1.0
        waiting = 0 if self.reached_target else max(0, trials - self.done - len(running))
        # The places of those that run are free for others when they end, in the mean; all has
        # ended when the last one has.
        rests = [self._rest(trial, now) for trial in running] or [0.0]
        return max(waiting * spent / work / at_once + fmean(rests), *rests)

    def _rest(self, trial: Running, now: float) -> float:
        spent = now - trial.since
        if not trial.progress:
            return max(0.0, self._seconds / self.done - spent)
        return spent / trial.progress * (self._expected_end(trial) - trial.progress)

    def _expected_end(self, trial: Running) -> float:
        """Return where ``trial`` is going to end, in percent."""
        further = {end: n for end, n in self._reached.items() if end > trial.progress} or {100: 1}
        return sum(end * n for end, n in further.items()) / sum(further.values())

    def last_ended(self, count: int) -> list[Past]:
        """Return the last ``count`` trials that ended, the newest first."""
        return list(itertools.islice(reversed(self.recent), count))


Others = Callable[[int], Sequence[Past]]
"""Gives the trials that other runners have ended since it was last asked; told that one ended here.
"""


def nobody(number: int) -> Sequence[Past]:
    """Return that nobody else has ended a trial."""
    return ()


class Watcher(Protocol):
    """Whoever is told what happens in a study that runs; the arguments are those of run's events.

    `stopping` may be called by a signal handler, at any point of another method.
    """

    def started(self, number: int, *, slot: int, params: Mapping[str, Value], attempt: int) -> None:
        """Hear that a trial was placed."""

    def rung(
        self,
        number: int,
        *,
        progress: int,
        value: float,
        metrics: Mapping[str, float],
        train_loss: float | None,
        pruned: bool,
        faults: Sequence[str] = (),
    ) -> None:
        """Hear that a trial was evaluated."""

    def ended(
        self,
        number: int,
        *,
        reason: str,
        value: float | None,
        seconds: float,
        params: Mapping[str, Value],
        note: str,
        leads: bool,
        faults: Sequence[str] = (),
    ) -> None:
        """Hear that a trial has ended."""

    def notice(self, text: str) -> None:
        """Hear something that a person should read."""

    def stopping(self, text: str) -> None:
        """Hear that the study was told to stop."""
