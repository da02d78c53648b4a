"""Cross-validation: a trial that is trained once for each fold of the training data.

Its value is the mean of the folds' values (k-fold cross-validation: Hastie, Tibshirani and
Friedman 2009, "The Elements of Statistical Learning", 2nd edition, section 7.10). Each fold that
is done is a rung, so that pruners compare configurations on the same examples.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from sft_tune.errors import StorageError, TrialError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.objective import resolve_direction
from sft_tune.trial.mirror import Mirror
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import FoldPaths, TrialPaths

Report = Callable[[Evaluation], bool]
Train = Callable[[TrialConfig, TrialPaths, Report, Mirror | None], Outcome]

# So a fold ends that was trained as far as it should be.
DONE = ("completed", "early_stopped")


def run_folds(
    config: TrialConfig, paths: TrialPaths, train: Train, report: Report, mirror: Mirror | None
) -> Outcome:
    """Train ``config`` once for each of its folds, from the first that is not done yet.

    Args:
        config: the complete configuration, with ``data.folds``.
        paths: the trial's folder.
        train: trains one fold, or goes on with it: given its configuration, its files, what is
            told of its rungs, and the mirror of its files.
        report: told of each fold when it is done and on record, again of the last one when the
            trial goes on after it; returns whether to go on.
        mirror: copies what must outlive this machine to another place; None: nothing must.

    Returns:
        The outcome. Value and metrics are means over the folds that are done; the weights are
        those of the fold with the best value. ``flags["folds"]`` has the ``values``, their
        standard ``deviation`` (None for one), and of the fold whose weights are kept: ``kept``
        (its number, from 0), its ``metrics`` and ``progress`` (its best rung, in percent).

    Raises:
        TrialError: files cannot be written.
        StorageError: they cannot be copied to or from where ``mirror`` keeps them.
    """
    count = config.data.folds or 0
    folds = _Folds(config, paths, count, mirror)
    folds.resumed_from = sum(fold.outcome.steps for fold in folds.done)
    go_on = not folds.done or report(folds.done[-1].evaluation)
    while go_on and len(folds.done) < count:
        number = len(folds.done)
        rungs: list[Evaluation] = []

        def note(rung: Evaluation, rungs: list[Evaluation] = rungs) -> bool:
            rungs.append(rung)
            return True

        place = FoldPaths(paths.root, number)
        part = mirror.part(place) if mirror is not None else None
        outcome = train(config.of_fold(number), place, note, part)
        folds.resumed_from += outcome.resumed_from
        if outcome.reason not in DONE:
            return folds.cut(outcome)
        folds.add(outcome, rungs[-1])
        go_on = report(folds.done[-1].evaluation)
    return folds.outcome()


@dataclass(frozen=True)
class _Fold:
    """A fold that is done: how it ended, and the rung that it is for the trial."""

    outcome: Outcome
    evaluation: Evaluation


class _Folds:
    """The folds of a trial that are done; they are on record before the trial goes on."""

    def __init__(
        self, config: TrialConfig, paths: TrialPaths, count: int, mirror: Mirror | None
    ) -> None:
        """Read those that are on record.

        Raises:
            StorageError: ``mirror`` cannot be read.
        """
        self.done: list[_Fold] = []
        self.resumed_from = 0
        self._config = config
        self._paths = paths
        self._count = count
        self._mirror = mirror
        if mirror is not None and not paths.folds.exists():
            _copied(lambda: mirror.fetch_file(paths.folds))
        if paths.folds.exists():
            for one in json.loads(paths.folds.read_text(encoding="utf8")):
                rung = Evaluation.from_json(one["evaluation"])
                self.done.append(_Fold(Outcome.from_json(one["outcome"]), rung))

    def add(self, outcome: Outcome, last: Evaluation) -> None:
        """Put on record that the next fold is done, after its rung ``last``.

        What it is for the trial has the metrics of its best rung, and the rest of its last: the
        best may be of an earlier attempt, of which that is not known any more.

        Raises:
            TrialError: that cannot be written.
            StorageError: that cannot be copied by the mirror.
        """
        ended = [*(fold.outcome for fold in self.done), outcome]
        before = self.done[-1].evaluation.epoch if self.done else None
        evaluation = replace(
            last,
            metrics=dict(outcome.metrics),
            examples=None,
            progress=round(100 * len(ended) / self._count),
            epoch=(before or 0.0) + (last.epoch or 0.0),
            step=sum(one.steps for one in ended),
            horizon=self._horizon(ended),
            seconds=sum(one.seconds for one in ended),
        )
        self.done.append(_Fold(outcome, evaluation))
        record = [
            {"outcome": fold.outcome.to_json(), "evaluation": fold.evaluation.to_json()}
            for fold in self.done
        ]
        temporary = self._paths.folds.with_name(f"{self._paths.folds.name}.tmp")
        try:
            temporary.write_text(json.dumps(record), encoding="utf8")
            os.replace(temporary, self._paths.folds)
        except OSError as error:
            raise TrialError(
                f"the fold's result cannot be written: {error}; free space, then start again"
            ) from error
        mirror = self._mirror
        if mirror is not None:
            _copied(lambda: mirror.put_file(self._paths.folds))
        FoldPaths(self._paths.root, len(self.done) - 1).drop_state()

    def cut(self, ending: Outcome) -> Outcome:
        """Return the outcome of a trial that ended in the middle of a fold, as ``ending`` did."""
        told = f"in fold {len(self.done) + 1} of {self._count}: {ending.note}"
        ended = [*(fold.outcome for fold in self.done), ending]
        return replace(
            self._summed(ended), reason=ending.reason, note="; ".join([told, *self._notes()])
        )

    def outcome(self) -> Outcome:
        """Return the outcome of a trial that ended after the last fold that is done."""
        whole = self._summed([fold.outcome for fold in self.done])
        if len(self.done) < self._count:
            told = f"after {len(self.done)} of {self._count} folds"
            return replace(whole, reason="pruned", note="; ".join([told, *self._notes()]))
        return replace(
            whole, reason="completed", note="; ".join(self._notes()), checkpoint=self._keep_best()
        )

    def _notes(self) -> list[str]:
        return [
            f"fold {number}: {fold.outcome.note}"
            for number, fold in enumerate(self.done, start=1)
            if fold.outcome.note
        ]

    def _summed(self, ended: list[Outcome]) -> Outcome:
        """Return the whole of ``ended``, of which those that are done have a value."""
        done = [fold.outcome for fold in self.done]
        flags = dict(ended[-1].flags)
        if done:
            flags["folds"] = self._flags()
        return replace(
            ended[-1],
            value=fmean(self._values()) if done else None,
            metrics={
                name: fmean(one.metrics[name] for one in done)
                for name in (done[0].metrics if done else ())
            },
            best_progress=None,
            steps=sum(one.steps for one in ended),
            horizon=self._horizon(ended),
            seconds=sum(one.seconds for one in ended),
            peak_memory=max(one.peak_memory for one in ended),
            checkpoint=None,
            resumed_from=self.resumed_from,
            flags=flags,
        )

    def _horizon(self, ended: list[Outcome]) -> int:
        """Return the steps of all folds; those that have not begun are as long as the last."""
        lengths = [one.horizon or 0 for one in ended]
        return sum(lengths) + (self._count - len(lengths)) * lengths[-1]

    def _values(self) -> list[float]:
        return [fold.outcome.value for fold in self.done if fold.outcome.value is not None]

    def _kept(self) -> int:
        """Return the number of the fold with the best value, of equals the first."""
        values = self._values()
        best = max if resolve_direction(self._config.objective) == "maximize" else min
        return values.index(best(values))

    def _flags(self) -> dict[str, Any]:
        values, kept = self._values(), self._kept()
        outcome = self.done[kept].outcome
        return {
            "values": values,
            "deviation": stdev(values) if len(values) > 1 else None,
            "kept": kept,
            "metrics": outcome.metrics,
            "progress": outcome.best_progress,
        }

    def _keep_best(self) -> str:
        """Give the weights of the best fold the name of the trial's, and return where they are.

        Raises:
            TrialError: they cannot be written.
            StorageError: they cannot be copied by the mirror.
        """
        paths, mirror = FoldPaths(self._paths.root, self._kept()), self._mirror
        if mirror is not None and not paths.best.exists():
            _copied(lambda: mirror.fetch_file(paths.best))
        temporary = self._paths.best.with_name(f"{self._paths.best.name}.tmp")
        try:
            shutil.copyfile(paths.best, temporary)
            os.replace(temporary, self._paths.best)
        except OSError as error:
            raise TrialError(
                f"the best weights cannot be written: {error}; free space, then start again"
            ) from error
        if mirror is None:
            return str(self._paths.best)
        _copied(mirror.put_best)
        return mirror.best


def _copied(copy: Callable[[], None]) -> None:
    """Copy a file to or from the mirror.

    Raises:
        StorageError: it could not be copied.
    """
    try:
        copy()
    except OSError as error:
        raise StorageError(
            f"storage.artifacts: {error}; when it answers, start again: the trial goes on after "
            "its last fold"
        ) from error
