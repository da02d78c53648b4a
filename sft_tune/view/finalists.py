"""Is the winner real? What fresh seeds say of the leading configurations.

Computed by `standings`, drawn by `draw_standings`. Every number is of validation unless it says
test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sft_tune.spec.config import default_params
from sft_tune.spec.space import Value
from sft_tune.spec.study import StudySpec
from sft_tune.store.finalists import FinalistRow
from sft_tune.store.rows import TrialRow
from sft_tune.view import words
from sft_tune.view.statistics import (
    Interval,
    chance_of_lead,
    chances_of_best,
    paired_difference,
    t_interval,
)
from sft_tune.view.tables import plain_table

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

    @property
    def leader(self) -> Finalist:
        """The finalist with the best mean on validation."""
        return self.finalists[0]

    @property
    def searched(self) -> Finalist | None:
        """The finalist that won the search, the one whose score is flattered the most."""
        return next((one for one in self.finalists if one.number == self.winner), None)

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
    held_out = {number: _test_scores(runs, number, metric) for number in order}
    chances = chances_of_best([list(scores[n].values()) for n in order], maximize=maximize)
    leader = order[0]
    base = next((n for n in order if dict(by_number[n].params) == default), None)
    found = []
    for place, number in enumerate(order):
        row = by_number[number]
        own = [run for run in runs if run.number == number]
        validation = t_interval(list(scores[number].values()))
        luck = None if row.value is None else validation.shifted_from(row.value)
        if luck is not None and not maximize:
            luck = _negative(luck)
        found.append(
            Finalist(
                number=number,
                is_default=number == base,
                search=row.value,
                params=row.params,
                seeds=tuple(scores[number]),
                values=tuple(scores[number].values()),
                validation=validation,
                test=t_interval(list(held_out[number].values())) if held_out[number] else None,
                to_leader=_against(scores, number, leader),
                to_default=_against(scores, number, base),
                test_to_leader=_against(held_out, number, leader),
                test_to_default=_against(held_out, number, base),
                chance=None if chances is None else chances[place],
                luck=luck,
                failed=_failed(own),
                open=sum(run.phase != "ended" for run in own),
                seconds=sum(run.seconds or 0.0 for run in own),
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


def _against(
    scores: Mapping[int, Mapping[int, float]], number: int, other: int | None
) -> Interval | None:
    """Return the paired difference to ``other`` over the seeds that both have."""
    if other is None or other == number:
        return None
    first, second = scores[number], scores[other]
    shared = [seed for seed in first if seed in second]
    if not shared:
        return None
    return paired_difference([first[s] for s in shared], [second[s] for s in shared])


def _negative(interval: Interval) -> Interval:
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


def draw_standings(found: Standings) -> RenderableType:
    """Return the finalists as two tables, and below them what they say in words."""
    title = f"{found.study}: {found.metric} over fresh seeds, mean and 95 % interval"
    parts: list[RenderableType] = [
        Text(title, "bold"),
        _scores_table(found),
        "",
        Text("differences on validation, seed by seed", "bold"),
        _differences_table(found),
        "",
    ]
    parts += [Text(line) for line in in_words(found)]
    return Group(*parts)


def _scores_table(found: Standings) -> Table:
    table = _numbers(*score_titles(found))
    for one, cells in zip(found.finalists, score_cells(found), strict=True):
        table.add_row(*cells, style="bold" if one is found.leader else "")
    return table


def score_titles(found: Standings) -> tuple[str, ...]:
    """Return the columns of `score_cells`."""
    return ("trial", "seeds", "validation", *(["test"] if found.has_test else []), "best")


def score_cells(found: Standings) -> list[list[str]]:
    """Return a row of text a finalist: seeds, means with intervals, chance of being the best."""
    return [
        [
            _named(one),
            str(one.validation.n),
            plus_minus(one.validation),
            *([plus_minus(one.test)] if found.has_test else []),
            words.chance(one.chance),
        ]
        for one in found.finalists
    ]


DIFFERENCES = ("trial", "to the leader", "to the default", "search", "luck")
"""The columns of `difference_cells`."""


def difference_cells(found: Standings) -> list[list[str]]:
    """Return a row of text a finalist: paired differences on validation, search score, luck."""
    return [
        [
            _named(one),
            signed(one.to_leader),
            signed(one.to_default),
            words.score(one.search),
            words.NOTHING if one.luck is None else words.gain(one.luck.mean),
        ]
        for one in found.finalists
    ]


def _differences_table(found: Standings) -> Table:
    table = _numbers(*DIFFERENCES)
    for one, cells in zip(found.finalists, difference_cells(found), strict=True):
        table.add_row(*cells, style="bold" if one is found.leader else "")
    return table


def _numbers(*names: str) -> Table:
    """Return an empty table whose cells are never cut: 80 columns hold half of what there is."""
    table = plain_table()
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _named(one: Finalist) -> str:
    return f"{one.number} (default)" if one.is_default else str(one.number)


def in_words(found: Standings) -> list[str]:
    """Return what the standings say, a sentence or two a line."""
    lines = [_verdict(found)]
    leader = found.leader
    if leader.to_default is not None:
        lines.append(_to_default(leader, found))
    if (won := found.searched) is not None and won.luck is not None:
        lines.append(_luck(won))
    if not found.has_test:
        lines.append(
            "The data has no test split: all of this is on the validation split that the search "
            "chose by; data.test or data.test_fraction sets one aside."
        )
    for one in found.finalists:
        if one.failed:
            lines.append(
                f"Trial {one.number}: {words.reasons(one.failed)}; its mean is of the other runs."
            )
    if found.open:
        lines.append(
            f"{words.plural(found.open, 'run')} still to end; the same command goes on with them."
        )
    return lines


def confirmed_in_words(found: Standings, study: str) -> str:
    """Return whether the winner of the search is confirmed, and by what; else how to find out."""
    won = found.searched
    if won is None:
        return f"no: the best trial is not among the finalists; `sft-tune confirm {study}` adds it"
    chance = "" if won.chance is None else f", the best of them with {words.chance(won.chance)}"
    test = "" if won.test is None else f", {plus_minus(won.test)} on test"
    told = f"{plus_minus(won.validation)} over {words.plural(won.validation.n, 'fresh seed')}{test}"
    return f"{'yes' if found.confirmed else 'no'}: {told}{chance}"


def _verdict(found: Standings) -> str:
    leader = found.leader
    if len(found.finalists) < 2:
        return f"Trial {leader.number} is the only finalist."
    if leader.chance is None:
        return "Of one seed each nothing is known about chance; give --seeds 2 or more."
    told = (
        f"Trial {leader.number} is the best of the {len(found.finalists)} with a probability of "
        f"{words.chance(leader.chance)}"
    )
    if found.confirmed:
        return f"Confirmed: {told[0].lower()}{told[1:]}."
    if leader.number != found.winner:
        return f"{told}; the search had chosen trial {found.winner}."
    return f"{told}: not enough to call it confirmed ({SURE:.0%}); more seeds may."


def _to_default(leader: Finalist, found: Standings) -> str:
    parts = [f"{signed(leader.to_default)} on validation"]
    if leader.test_to_default is not None:
        parts.append(f"{signed(leader.test_to_default)} on test")
    difference = leader.to_default
    if difference is not None and not found.maximize:
        difference = _negative(difference)
    chance = None if difference is None else chance_of_lead(difference)
    sure = "" if chance is None else f"; better with a probability of {words.chance(chance)}"
    return f"Trial {leader.number} against the default, seed by seed: {', '.join(parts)}{sure}."


def _luck(won: Finalist) -> str:
    if won.luck is None:
        return ""
    told = (
        f"The search scored trial {won.number} {words.score(won.search)}, fresh seeds "
        f"{words.score(won.validation.mean)} on average: "
    )
    if won.luck.low is not None and won.luck.low > 0:
        return told + (
            f"{signed(won.luck)} of it was luck (the best of many noisy scores is too good: "
            "selection bias)."
        )
    return told + f"its luck of {signed(won.luck)} is within chance."


def plus_minus(interval: Interval | None) -> str:
    """Return ``0.9312 ± 0.0041``; the mean alone where there is no interval."""
    if interval is None:
        return words.NOTHING
    half = "" if interval.half is None else f" ± {words.score(interval.half)}"
    return f"{words.score(interval.mean)}{half}"


def signed(interval: Interval | None) -> str:
    """Return a difference as ``+0.0123 ± 0.0040``."""
    if interval is None:
        return words.NOTHING
    half = "" if interval.half is None else f" ± {words.score(interval.half)}"
    return f"{words.gain(interval.mean)}{half}"


def standings_json(found: Standings | None) -> dict[str, Any] | None:
    """Return the standings as plain values; intervals as mappings."""
    if found is None:
        return None
    return {
        "study": found.study,
        "metric": found.metric,
        "confirmed": found.confirmed,
        "leader": found.leader.number,
        "search_winner": found.winner,
        "runs_ended": found.ended,
        "runs_open": found.open,
        "has_test": found.has_test,
        "finalists": [finalist_record(one) for one in found.finalists],
    }


def finalist_record(one: Finalist) -> dict[str, Any]:
    """Return a finalist as plain values."""
    return {
        name: value._asdict() if isinstance(value, Interval) else value
        for name, value in one._asdict().items()
    }


def run_records(found: Sequence[FinalistRow]) -> list[dict[str, Any]]:
    """Return a flat record a confirmation run; metrics with the split that they are of."""
    validation = list(dict.fromkeys(name for run in found for name in run.metrics))
    held_out = list(dict.fromkeys(name for run in found for name in run.test_metrics))
    plain = [f for f in FinalistRow._fields if f not in ("metrics", "test_metrics", "error")]
    return [
        {
            **{name: getattr(run, name) for name in plain},
            **{f"validation_{name}": run.metrics.get(name) for name in validation},
            **{f"test_{name}": run.test_metrics.get(name) for name in held_out},
        }
        for run in found
    ]
