"""One search over recorded curves: the study's own sampler and pruner, through Optuna, in memory.

A sampler's point is replaced by the nearest recorded trial that this search has not had yet, and
Optuna is told that trial's parameters, so that what it models are true pairs of point and value.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import Trial, TrialState

from sft_tune.search.distributions import draw, to_distribution
from sft_tune.spec.space import Value
from sft_tune.spec.study import StudySpec
from tests.benchmarks.recorded import Curves


class Step(NamedTuple):
    """A trial of a replay that has ended.

    Attributes:
        epochs: spent by the search so far.
        seconds: on the device, so far.
        best: value of the best completed trial so far; NaN before one.
    """

    epochs: float
    seconds: float
    best: float


class Pool:
    """The recorded trials as a finite search space."""

    def __init__(self, curves: Curves, spec: StudySpec) -> None:
        """Prepare ``curves``, recorded in the space of ``spec``."""
        self.curves, self.spec = curves, spec
        self.distributions = {
            name: to_distribution(parameter) for name, parameter in spec.space.items()
        }
        self._points = np.array([self._coordinates(params) for params in curves.params])
        sizes = np.array([params["batch_size"] for params in curves.params])
        rates = curves.seconds / curves.epochs
        # By batch size, in the median: single trials were timed on a machine with other work.
        self.seconds_per_epoch = np.array(
            [float(np.median(rates[sizes == size])) for size in sizes]
        )
        self.top = float(np.nanmax(curves.own))

    def _coordinates(self, params: dict[str, Value]) -> list[float]:
        """Return a point in the unit cube; a categorical one takes a coordinate for each choice."""
        found: list[float] = []
        for name, parameter in self.spec.space.items():
            if parameter.values is not None:
                found += [float(params[name] == value) / 2**0.5 for value in parameter.values]
                continue
            low, high, value = (*parameter.bounds(), float(params[name] or 0))
            if parameter.log:
                low, high, value = (float(np.log(v)) for v in (low, high, value))
            found.append((value - low) / (high - low))
        return found

    def nearest(self, params: dict[str, Value], used: NDArray[np.bool_]) -> int:
        """Return the recorded trial nearest to ``params`` of those not ``used``."""
        apart = ((self._points - np.array(self._coordinates(params))) ** 2).sum(axis=1)
        return int(np.argmin(np.where(used, np.inf, apart)))

    def own_rungs(self, row: int) -> Iterator[tuple[int, float, float]]:
        """Yield a trial's rungs: progress in percent, epochs spent, value; NaN: it diverged."""
        rungs = self.curves.own.shape[1]
        for index, value in enumerate(self.curves.own[row]):
            share = (index + 1) / rungs
            yield round(100 * share), share * float(self.curves.epochs[row]), float(value)

    def epochs(self, row: int) -> Iterator[tuple[int, float, float]]:
        """Yield a trial's epochs in the same way, counted from 1."""
        for index in range(int(self.curves.epochs[row])):
            yield index + 1, float(index + 1), float(self.curves.by_epoch[row, index])


Feed = Callable[[Pool, int], Iterator[tuple[int, float, float]]]


def replay(
    pool: Pool,
    sampler_of: Callable[[int], BaseSampler],
    pruner: BasePruner,
    feed: Feed,
    *,
    budget: float,
) -> list[Step]:
    """Search until ``budget`` epochs are spent; return what was known after each trial.

    Args:
        pool: the recorded trials.
        sampler_of: returns the sampler of the trial at this place, as `make_sampler` does.
        pruner: decides at what ``feed`` yields.
        feed: `Pool.own_rungs` or `Pool.epochs`.
        budget: epochs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="maximize", pruner=pruner)
    used = np.zeros(len(pool.curves.params), bool)
    epochs, seconds, best = 0.0, 0.0, float("nan")
    steps: list[Step] = []
    while epochs < budget and not used.all():
        opened = study._storage.create_new_trial(study._study_id)
        point = _suggest(study, sampler_of(len(steps)), pool, opened)
        row = pool.nearest(point, used)
        used[row] = True
        spent, value = _train(study, pool, row, feed, opened)
        epochs += spent
        seconds += spent * float(pool.seconds_per_epoch[row])
        if value is not None:
            best = float(np.fmax(best, value))
        steps.append(Step(epochs, seconds, best))
    return steps


def _suggest(
    study: optuna.Study, sampler: BaseSampler, pool: Pool, opened: int
) -> dict[str, Value]:
    """Return the point that ``sampler`` would try in the trial with the id ``opened``."""
    blank = study._storage.get_trial(opened)
    space = sampler.infer_relative_search_space(study, blank)
    chosen: dict[str, Any] = sampler.sample_relative(study, blank, space)
    for name, distribution in pool.distributions.items():
        if name not in chosen:
            chosen[name] = sampler.sample_independent(study, blank, name, distribution)
    return chosen


def _train(
    study: optuna.Study, pool: Pool, row: int, feed: Feed, opened: int
) -> tuple[float, float | None]:
    """Run a recorded trial; return the epochs it took, and its value where it was completed."""
    study.sampler = RandomSampler()  # has nothing to choose: every parameter is fixed
    study._storage.set_trial_system_attr(opened, "fixed_params", pool.curves.params[row])
    trial = Trial(study, opened)
    draw(trial, pool.spec.space)
    spent, seen = 0.0, []
    for step, epochs, value in feed(pool, row):
        spent = epochs
        if not np.isfinite(value):
            break
        seen.append(value)
        trial.report(value, step)
        if trial.should_prune():
            break
    else:
        study.tell(trial, max(seen))
        return spent, max(seen)
    # A trial that diverged is told as pruned, too: its region is bad.
    study.tell(trial, state=TrialState.PRUNED)
    return spent, None
