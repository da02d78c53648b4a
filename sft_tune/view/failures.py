"""Why trials fail, and where: the part of the space in which they diverge or lack memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sft_tune.spec.yaml12 import to_flow
from sft_tune.store.rows import TrialRow
from sft_tune.view import words
from sft_tune.view.evidence import Evidence
from sft_tune.view.statistics import PERMUTATIONS

LEAST_SHARE = 0.15
LEAST_COUNT = 3
REASONS = ("diverged", "out_of_memory")
ERRORS = ("crashed", "stalled")


class Split(NamedTuple):
    """A part of one parameter's values: from ``at`` on, up to it, or that choice."""

    name: str
    side: str
    at: Any
    inside: int
    failed_inside: int
    p: float


class Broken(NamedTuple):
    """Trials that failed where no value of a hyperparameter is to blame, or that all failed.

    Attributes:
        failed: how many.
        trials: of so many that have ended.
        reasons: why they ended, with how many of each.
        error: what most of them say, in a line; empty where nothing is known.
        same: how many say it.
        number: the first that does.
    """

    failed: int
    trials: int
    reasons: Mapping[str, int]
    error: str
    same: int
    number: int

    @property
    def every(self) -> bool:
        """Whether no trial came to anything."""
        return self.failed == self.trials

    def in_words(self) -> str:
        """Return how many failed, and with what error."""
        how = words.reasons(self.reasons)
        if self.every:
            told = "every trial failed" if self.trials > 1 else "its one trial failed"
            told += f" ({how})"
        else:
            told = f"of {words.plural(self.trials, 'trial')} {how}"
        if not self.error:
            return told
        some = "" if self.same == self.failed else f" ({self.same} of them)"
        return f"{told}: {self.error}{some}"


def broken(rows: Sequence[TrialRow]) -> Broken | None:
    """Return what the trials ``rows`` failed of; None of few or none that did.

    That is when all have failed, or at least 3, and 15 %, have crashed or stalled.
    """
    ended = [row for row in rows if row.reason is not None and row.duplicate_of is None]
    every = bool(ended) and all(row.reason in (*ERRORS, *REASONS) for row in ended)
    failed = ended if every else [row for row in ended if row.reason in ERRORS]
    if not every and (len(failed) < LEAST_COUNT or len(failed) < LEAST_SHARE * len(ended)):
        return None
    errors = [(row.note or "").strip().partition("\n")[0] for row in failed]
    error, same = Counter(errors).most_common(1)[0]
    reasons = Counter(row.reason or "" for row in failed)
    first = failed[errors.index(error)].number
    return Broken(len(failed), len(ended), reasons, error, same, first)


def failures(
    evidence: Evidence,
) -> Iterator[tuple[str, str, dict[str, Any], str | None]]:
    """Yield for each reason that ended over 15 % of the trials: reason, text, numbers, line.

    Where the failures lie is told when the best split of one parameter is better than that of 95
    in 100 random assignments of the failures (over all parameters at once). Where every trial
    failed there is no such place, and `broken` tells of them.
    """
    told_of = broken(evidence.rows)
    if told_of is not None and told_of.every:
        return
    rows = [row for row in evidence.rows if row.params]
    for reason in REASONS:
        failed = np.array([row.reason == reason for row in rows], dtype=bool)
        count = int(failed.sum())
        if count < LEAST_COUNT or count < LEAST_SHARE * len(rows):
            continue
        told = f"{count} of {len(rows)} trials ended as {words.REASONS[reason]}"
        numbers: dict[str, Any] = {"failed": count, "trials": len(rows)}
        found = where(evidence, rows, failed)
        if found is None:
            yield reason, f"{told}, in no one place of the space", numbers, None
            continue
        numbers |= found._asdict()
        what = {"above": "at or above", "below": "at or below", "is": "at"}[found.side]
        text = (
            f"{told}, {found.failed_inside} of them with {found.name} {what} "
            f"{words.setting(found.at)} ({found.inside} trials there); leave that out in a next "
            "study"
        )
        yield reason, text, numbers, _line(evidence, rows, failed, found)


def where(evidence: Evidence, rows: Sequence[TrialRow], failed: np.ndarray) -> Split | None:
    """Return the part of the space that holds the failures best; None: nowhere beyond chance."""
    splits = list(_splits(evidence, rows))
    if not splits:
        return None
    inside = np.array([mask for *_, mask in splits], dtype=np.float64)
    centred = inside - inside.mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).sum(axis=1))
    usable = scale > 0
    if not usable.any():
        return None
    centred = centred[usable] / scale[usable, None]
    scores = centred @ failed.astype(np.float64)
    best = int(scores.argmax())
    random = np.random.default_rng(0)
    shuffled = random.permuted(np.tile(failed, (PERMUTATIONS, 1)), axis=1).astype(np.float64)
    null = (shuffled @ centred.T).max(axis=1)
    p = float(((null >= scores[best] - 1e-12).sum() + 1) / (PERMUTATIONS + 1))
    if p > 0.05:
        return None
    name, side, at, mask = [split for split, use in zip(splits, usable, strict=True) if use][best]
    chosen = np.array(mask)
    return Split(name, side, at, int(chosen.sum()), int((chosen & failed).sum()), p)


def _splits(
    evidence: Evidence, rows: Sequence[TrialRow]
) -> Iterator[tuple[str, str, Any, list[bool]]]:
    for name, parameter in evidence.spec.space.items():
        values = [row.params.get(name) for row in rows]
        if parameter.values is None:
            known = sorted({v for v in values if isinstance(v, int | float)})
            for at in known[1:]:
                mask = [isinstance(v, int | float) and v >= at for v in values]
                yield name, "above", at, mask
            for at in known[:-1]:
                mask = [isinstance(v, int | float) and v <= at for v in values]
                yield name, "below", at, mask
            continue
        for choice in parameter.values:
            yield name, "is", choice, [name in r.params and r.params[name] == choice for r in rows]


def _line(
    evidence: Evidence, rows: Sequence[TrialRow], failed: np.ndarray, found: Split
) -> str | None:
    """Return the parameter without the part that fails; None where nothing would be left."""
    parameter = evidence.spec.space[found.name]
    written = parameter.model_dump(mode="json", exclude_defaults=True)
    if found.side == "is":
        rest = [value for value in parameter.values or () if value != found.at]
        if not rest:
            return None
        return f"{found.name}: {to_flow({**written, 'values': rest} if parameter.when else rest)}"
    sound = [
        row.params[found.name]
        for row, bad in zip(rows, failed, strict=True)
        if not bad and found.name in row.params
    ]
    upper = found.side == "above"
    inner = [v for v in sound if v is not None and ((v < found.at) if upper else (v > found.at))]
    if not inner:
        return None
    end: Any = max(inner) if upper else min(inner)
    if isinstance(end, float):
        end = float(f"{end:.2g}")
    low, high = parameter.bounds()
    if not low <= end <= high or (parameter.step is not None and not parameter.contains(end)):
        return None
    return f"{found.name}: {to_flow({**written, 'high' if upper else 'low': end})}"
