"""Did the pruner cut trials that would have led? What the completed ones say."""

from __future__ import annotations

import math
from typing import NamedTuple

from sft_tune.store.rows import TrialRow
from sft_tune.view.evidence import Evidence
from sft_tune.view.statistics import rank_correlation

LEAST_COMPLETED = 6
LEAST_CUT = 5
FORETELLS = 0.7
"""A rank correlation with the end from which values are a fair reason to cut a trial."""


class Eager(NamedTuple):
    """A pruner that is too eager.

    Attributes:
        cut: trials that were cut, of which the rungs below can be judged.
        completed: trials that the judgement is made by.
        would_lead: how many of those cut would have beaten the leader, by expectation.
        progress: the rung at which most were cut: in percent, or the reported step of a study
            that another program made.
        correlation: of the values there with those at the end, among the completed.
        first: the progress before which nothing should be cut.
    """

    cut: int
    completed: int
    would_lead: float
    progress: int
    correlation: float
    first: int


def eager_pruner(evidence: Evidence) -> Eager | None:
    """Return the evidence that the pruner cuts too early; None where there is none.

    The gain from the rung of a cut to the end, among the trials that completed, has a mean and a
    deviation; a trial that was cut would have beaten the leader with the probability that a
    normal gain of these takes it above. At least one such trial is expected, and the rank
    correlation of the rung with the end is below `FORETELLS`. The completed are those that the
    pruner liked, so that the correlation is one of survivors: lower than among all trials.

    Of a study that another program made, what was reported may be something else than its value
    (a loss, say, of a study of accuracies): there the last report must foretell the value.
    """
    cut = [row for row in evidence.rows if _was_cut(row) and evidence.curves[row.number]]
    if len(cut) < LEAST_CUT or len(evidence.done) < LEAST_COMPLETED:
        return None
    if evidence.done[0].phase is None and not _reports_its_value(evidence):
        return None
    leader = evidence.sign * (evidence.done[0].value or 0.0)
    would_lead, judged = 0.0, []
    reached = {row.number: max(evidence.curves[row.number]) for row in cut}
    gains = {progress: _gain(evidence, progress) for progress in set(reached.values())}
    for row in cut:
        progress = reached[row.number]
        gain = gains[progress]
        if gain is None:
            continue
        mean, deviation = gain
        lacks = leader - max(evidence.curves[row.number].values()) - mean
        would_lead += _above(lacks, deviation)
        judged.append(progress)
    if len(judged) < LEAST_CUT or would_lead < 1:
        return None
    usual = max(sorted(set(judged)), key=judged.count)
    correlation = correlation_with_end(evidence, usual)
    if correlation is None or correlation >= FORETELLS:
        return None
    later = [at for at in _rungs(evidence) if at > usual]
    good = [at for at in later if (correlation_with_end(evidence, at) or 0.0) >= FORETELLS]
    first = min(good or later, default=2 * usual)
    if evidence.done[0].phase is not None:
        first = min(99, first)
    return Eager(len(judged), len(evidence.done), would_lead, usual, correlation, first)


def _was_cut(row: TrialRow) -> bool:
    """Tell whether a pruner cut the trial; of one that is not ours nobody wrote down why."""
    return row.reason == "pruned" or (row.reason is None and row.state == "PRUNED")


def _reports_its_value(evidence: Evidence) -> bool:
    """Tell whether the last of what completed trials reported foretells their value."""
    pairs = [
        (evidence.curves[row.number][max(evidence.curves[row.number])], row.value or 0.0)
        for row in evidence.done
        if evidence.curves[row.number]
    ]
    ends = [evidence.sign * value for _, value in pairs]
    found = rank_correlation([last for last, _ in pairs], ends)
    return found is not None and found >= FORETELLS


def correlation_with_end(evidence: Evidence, progress: int) -> float | None:
    """Return the rank correlation of the values at ``progress`` with those at the end."""
    pairs = _pairs(evidence, progress)
    return rank_correlation([a for a, _ in pairs], [b for _, b in pairs])


def _pairs(evidence: Evidence, progress: int) -> list[tuple[float, float]]:
    return [
        (evidence.curves[row.number][progress], evidence.sign * (row.value or 0.0))
        for row in evidence.done
        if progress in evidence.curves[row.number]
    ]


def _rungs(evidence: Evidence) -> list[int]:
    return sorted({at for row in evidence.done for at in evidence.curves[row.number]})


def _gain(evidence: Evidence, progress: int) -> tuple[float, float] | None:
    pairs = _pairs(evidence, progress)
    if len(pairs) < LEAST_COMPLETED:
        return None
    gains = [end - at for at, end in pairs]
    mean = sum(gains) / len(gains)
    return mean, math.sqrt(sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1))


def _above(lacks: float, deviation: float) -> float:
    """Return the chance that a normal deviate of this deviation is above ``lacks``."""
    if deviation == 0:
        return float(lacks < 0)
    return 0.5 * math.erfc(lacks / deviation / math.sqrt(2))
