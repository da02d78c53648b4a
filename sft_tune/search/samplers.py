"""The samplers by name.

A sampler is made afresh for every trial, seeded from the study's seed and the trial's place in
the study: so trial 7 draws the same in a study that was killed and started again as in one that
was not, and a restart does not repeat the first draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler

from sft_tune.spec.config import trial_seed
from sft_tune.spec.study import StudySpec


def _random(spec: StudySpec, seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _tpe(spec: StudySpec, seed: int) -> BaseSampler:
    # Without `group`, parameters that only some trials have are drawn independently of the rest.
    conditional = any(p.when for p in spec.space.values())
    startup = spec.sampler.startup_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, n_startup_trials=startup, group=conditional)


def _gp(spec: StudySpec, seed: int) -> BaseSampler:
    return GPSampler(
        seed=seed,
        n_startup_trials=spec.sampler.startup_trials,
        warn_independent_sampling=False,
    )


def _qmc(spec: StudySpec, seed: int) -> BaseSampler:
    # One sequence for the whole study: its seed must not differ from trial to trial.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return QMCSampler(
            seed=spec.seed,
            scramble=True,
            independent_sampler=RandomSampler(seed=seed),
            warn_independent_sampling=False,
        )


SAMPLERS: dict[str, Callable[[StudySpec, int], BaseSampler]] = {
    "random": _random,
    "tpe": _tpe,
    "gp": _gp,
    "qmc": _qmc,
    # A grid's cells are fixed before Optuna is asked (see `grid`): nothing is left to sample.
    "grid": _random,
}


def make_sampler(spec: StudySpec, ordinal: int) -> BaseSampler:
    """Return the sampler that draws the trial at place ``ordinal`` (from 0) of the study."""
    settings, seed = spec.sampler, trial_seed(spec.seed, ordinal)
    models = settings.name in ("tpe", "gp")
    if models and settings.startup == "qmc" and ordinal < settings.startup_trials:
        return _qmc(spec, seed)
    return SAMPLERS[settings.name](spec, seed)
