"""Is the winner real? What fresh seeds say of the leading configurations.

Computed by `standings`. Every number is of validation unless it says test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sft_tune.spec.config import default_params
from sft_tune.spec.objective import limits_of
from sft_tune.spec.space import Value
from sft_tune.spec.study import StudySpec
from sft_tune.store.finalist_rows import FinalistRow
from sft_tune.store.rows import TrialRow
from sft_tune.view import words
from sft_tune.view.statistics import Interval, chances_of_best, paired_difference, t_interval

Limits = tuple[float | None, float | None]
"""The least and the greatest value of a metric; None: no limit."""

SURE = 0.9
"""The chance of being the best from which a leader counts as confirmed."""


class Finalist(NamedTuple):
    """A configuration over fresh seeds.

    Attributes:
        number: of the trial that found it.
        is_default: whether it is the default configuration.
        search: its score in the search: one run, chosen among many.
        params: its point of the space.
        seeds: those of its finished runs.
        values: the objective on validation, in the order of ``seeds``.
        validation: mean and interval of these.
        test: the same on the test split; None where it was not evaluated.
        to_leader: this one minus the leader, over the seeds that both have; None of the leader.
        to_default: this one minus the default configuration; None of the default, or without it.
        test_to_leader: as ``to_leader``, on test.
        test_to_default: as ``to_default``, on test.
        chance: how likely its true mean is the best of the finalists (see `chances_of_best`).
        luck: its search score minus the mean over fresh seeds, positive where the search
            flattered it, with the interval that the mean has.
        failed: runs that ended without a value, by reason.
        open: runs that have not ended.
        seconds: on the device, all its runs together.
        checkpoint: the weights of its trial in the search; None: not kept.
    """

    number: int
    is_default: bool
    search: float | None
    params: Mapping[str, Value]
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    validation: Interval
    test: Interval | None
    to_leader: Interval | None
    to_default: Interval | None
    test_to_leader: Interval | None
    test_to_default: Interval | None
    chance: float | None
    luck: Interval | None
    failed: Mapping[str, int]
    open: int
    seconds: float
    checkpoint: str | None


class Standings(NamedTuple):
    """The finalists of a study, the best mean on validation first.

    Attributes:
        study: its name.
        metric: the objective.
        maximize: whether more of it is better.
        finalists: at least one.
        winner: number of the trial that won the search; None: none has completed.
        open: runs that have not ended.
        ended: runs that have.
        has_test: whether any run was evaluated on the test split.
    """

    study: str
    metric: str
    maximize: bool
    finalists: tuple[Finalist, ...]
    winner: int | None
    open: int
    ended: int
    has_test: bool

    def __repr__(self) -> str:
        """Say in a line who leads; every run is in `finalists`."""
        first, many = self.leader, words.plural(len(self.finalists), "finalist")
        reached = f"{self.metric} {words.plus_minus(first.validation)}"
        return f"<Standings of {self.study!r}: {many}, trial {first.number} leads, {reached}>"

    @property
    def leader(self) -> Finalist:
        """The finalist with the best mean on validation."""
        return self.finalists[0]

    @property
    def searched(self) -> Finalist | None:
        """The finalist that won the search, the one whose score is flattered the most."""
        return next((one for one in self.finalists if one.number == self.winner), None)

    @property
    def overtaken(self) -> bool:
        """Whether another than the winner of the search leads."""
        return self.leader.number != self.winner

    @property
    def confirmed(self) -> bool:
        """Whether the winner of the search is likely the best of the finalists, all runs ended."""
        won = self.searched
        return not self.open and won is not None and (won.chance or 0.0) >= SURE


def standings(
    spec: StudySpec, rows: Sequence[TrialRow], runs: Sequence[FinalistRow]
) -> Standings | None:
    """Return how the finalists stand; None before any run has ended with a value.

    Args:
        spec: the study.
        rows: its trials.
        runs: its confirmation runs.
    """
    maximize = spec.direction == "maximize"
    metric = spec.objective.metric
    default = default_params(spec)
    by_number = {row.number: row for row in rows}
    scores = _scores(runs)
    if not scores:
        return None
    sign = 1 if maximize else -1
    order = sorted(scores, key=lambda number: -sign * _mean(scores[number]))
    limits = limits_of(spec.objective, spec.task)
    held_out = {number: _test_scores(runs, number, metric) for number in order}
    chances = chances_of_best([scores[n] for n in order], maximize=maximize)
    leader = order[0]
    base = next((n for n in order if dict(by_number[n].params) == default), None)
    found = []
    for place, number in enumerate(order):
        row = by_number[number]
        own = [run for run in runs if run.number == number]
        validation = _interval(scores[number], limits)
        luck = None if row.value is None else validation.shifted_from(row.value)
        if luck is not None and not maximize:
            luck = negative(luck)
        found.append(
            Finalist(
                number=number,
                is_default=number == base,
                search=row.value,
                params=row.params,
                seeds=tuple(scores[number]),
                values=tuple(scores[number].values()),
                validation=validation,
                test=_interval(held_out[number], limits) if held_out[number] else None,
                to_leader=_against(scores, number, leader, limits),
                to_default=_against(scores, number, base, limits),
                test_to_leader=_against(held_out, number, leader, limits),
                test_to_default=_against(held_out, number, base, limits),
                chance=None if chances is None else chances[place],
                luck=luck,
                failed=_failed(own),
                open=sum(run.phase != "ended" for run in own),
                seconds=sum(run.seconds or 0.0 for run in own),
                checkpoint=row.checkpoint,
            )
        )
    return Standings(
        study=spec.name,
        metric=metric,
        maximize=maximize,
        finalists=tuple(found),
        winner=_winner(rows, sign),
        open=sum(run.phase != "ended" for run in runs),
        ended=sum(run.phase == "ended" for run in runs),
        has_test=any(held_out.values()),
    )


def _scores(runs: Sequence[FinalistRow]) -> dict[int, dict[int, float]]:
    """Return the objective on validation by trial and seed, of the runs that came to an end."""
    found: dict[int, dict[int, float]] = {}
    for run in runs:
        if run.reason == "completed" and run.value is not None:
            found.setdefault(run.number, {})[run.seed] = run.value
    return found


def _test_scores(runs: Sequence[FinalistRow], number: int, metric: str) -> dict[int, float]:
    own = (run for run in runs if run.number == number and run.reason == "completed")
    return {run.seed: run.test_metrics[metric] for run in own if metric in run.test_metrics}


def _mean(scores: Mapping[int, float]) -> float:
    return sum(scores.values()) / len(scores)


def _interval(scores: Mapping[int, float], limits: Limits) -> Interval:
    return t_interval(list(scores.values())).within(*limits)


def _against(
    scores: Mapping[int, Mapping[int, float]], number: int, other: int | None, limits: Limits
) -> Interval | None:
    """Return the paired difference to ``other`` over the seeds that both have."""
    if other is None or other == number:
        return None
    first, second = scores[number], scores[other]
    shared = [seed for seed in first if seed in second]
    if not shared:
        return None
    return paired_difference([first[s] for s in shared], [second[s] for s in shared], limits=limits)


def negative(interval: Interval) -> Interval:
    """Return the interval of minus the mean."""
    low = None if interval.high is None else -interval.high
    high = None if interval.low is None else -interval.low
    return interval._replace(mean=-interval.mean, low=low, high=high)


def _failed(runs: Sequence[FinalistRow]) -> dict[str, int]:
    found: dict[str, int] = {}
    for run in runs:
        if run.phase == "ended" and (run.reason != "completed" or run.value is None):
            reason = run.reason or "failed"
            found[reason] = found.get(reason, 0) + 1
    return found


def _winner(rows: Sequence[TrialRow], sign: int) -> int | None:
    done = [
        (sign * row.value, -row.number)
        for row in rows
        if row.state == "COMPLETE" and row.duplicate_of is None and row.value is not None
    ]
    return -max(done)[1] if done else None
