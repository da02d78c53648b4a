"""TPE that weighs what a trial promises against what it costs: epochs, times what its model takes.

Epochs are counted, not timed: the same study draws the same trials on a fast machine and on a slow
one. Models are timed once, when a study is begun, and compared roughly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from sft_tune.search.distributions import to_distribution
from sft_tune.spec.plan import COST, MODEL
from sft_tune.spec.space import Space, Value, in_order, is_active

CANDIDATES = 8
"""Random points of which a startup trial is one."""

EXPONENT = 2.0
"""The chance of such a point is its cost to minus this power. Replayed over recorded fine-tunes, a
good trial was found 1.36 times as soon as with none, 1.27 times with 1 (n = 140; they overlap)."""


class CostAwareTPE(TPESampler):
    """Tree-structured Parzen estimator (Bergstra et al. 2011) by improvement per cost.

    Of its candidates, TPE takes the one with the largest ratio of densities l(x) / g(x), with which
    the expected improvement grows. Here it is the largest l(x) / (g(x) cost(x)), after the
    "expected improvement per second" of Snoek, Larochelle and Adams (2012). Startup trials are
    drawn at random, those of few epochs more often, and of every model: what a large one gains must
    be seen before its cost counts.
    """

    def __init__(
        self,
        space: Space,
        *,
        usual: float,
        fixed_cost: float,
        costs: Mapping[str, float],
        seed: int,
        n_startup_trials: int,
        group: bool,
    ) -> None:
        """Search ``space``, whose ``epochs``, if any, are numbers above 0, for one trial.

        Args:
            space: of the study.
            usual: epochs of a trial for which none are drawn.
            fixed_cost: of every trial beside its epochs, in epochs.
            costs: of a step, by model; one that is not among them costs 1.
            seed: of all draws.
            n_startup_trials: ended trials before anything is modelled.
            group: see `TPESampler`.
        """
        super().__init__(seed=seed, n_startup_trials=n_startup_trials, group=group)
        self._space = space
        self._usual = usual
        self._fixed_cost = fixed_cost
        self._costs = costs
        self._startup_seed = seed
        self._startup = n_startup_trials
        self._models = True

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what `sample_relative` draws: everything, while nothing is modelled."""
        ended = (TrialState.COMPLETE, TrialState.PRUNED)
        # Once for both methods: between them another process may end a trial.
        self._models = len(study.get_trials(deepcopy=False, states=ended)) >= self._startup
        if self._models:
            return super().infer_relative_search_space(study, trial)
        return {name: to_distribution(parameter) for name, parameter in self._space.items()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the values of a trial."""
        if self._models:
            return super().sample_relative(study, trial, search_space)
        sampler = RandomSampler(seed=self._startup_seed)
        points = [
            _random(self._space, sampler, study, trial, search_space) for _ in range(CANDIDATES)
        ]
        epochs = [float(point.get(COST) or self._usual) for point in points]
        costs = self._fixed_cost + np.array(epochs)
        chances = costs**-EXPONENT / (costs**-EXPONENT).sum()
        return points[np.random.default_rng(self._startup_seed).choice(CANDIDATES, p=chances)]

    def _compute_acquisition_func(
        self, samples: dict[str, NDArray[Any]], mpe_below: Any, mpe_above: Any
    ) -> NDArray[Any]:
        """Return log l(x) - log g(x) - log cost(x) of the candidates ``samples``.

        Optuna has no public place for this; a test fails where it no longer asks here.
        """
        ratios: NDArray[Any] = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        # The cost is a product, so that it does not matter whether both are drawn together.
        if COST in samples:
            ratios = ratios - np.log(self._of_epochs(samples[COST]))
        if MODEL in samples:
            ratios = ratios - np.log(np.take(self._of_models(), samples[MODEL].astype(int)))
        return ratios

    def _of_epochs(self, internal: NDArray[Any]) -> NDArray[Any]:
        """Return what epochs cost that Optuna represents so: those of a list by their places."""
        values = self._space[COST].values
        if values is None:
            return self._fixed_cost + internal
        costs = self._fixed_cost + np.array([float(value or 1) for value in values])
        return np.take(costs, internal.astype(int))

    def _of_models(self) -> NDArray[np.float64]:
        """Return the costs of the models of the space, in their order."""
        return np.array([self._costs.get(str(n), 1.0) for n in self._space[MODEL].values or ()])


def _random(
    space: Space,
    sampler: RandomSampler,
    study: Study,
    trial: FrozenTrial,
    distributions: dict[str, BaseDistribution],
) -> dict[str, Value]:
    """Return a point of ``space`` at random, of active parameters only."""
    point: dict[str, Value] = {}
    for name in in_order(space):
        if is_active(space[name], point):
            point[name] = sampler.sample_independent(study, trial, name, distributions[name])
    return point
