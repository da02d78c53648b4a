"""The pruners by name. Their resource is a trial's progress over its own schedule, in percent."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from optuna import Study
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    WilcoxonPruner,
)
from optuna.trial import FrozenTrial, TrialState

from sft_tune.spec.search import PrunerSpec


class _AfterStartup(BasePruner):
    """Cuts nothing before ``startup_trials`` are completed.

    Optuna's successive halving lets a trial pass its first rung only when it is the best so far,
    until there are twice `reduction` to compare: of a study of 12 trials, three end their
    schedule, and chance at a tenth of it says which. Rungs are recorded all the same, so that the
    first trials are what later ones are compared with.
    """

    def __init__(self, startup_trials: int, **settings: Any) -> None:
        super().__init__(**settings)
        self._startup_trials = startup_trials

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        behind = super().prune(study, trial)  # type: ignore[safe-super]
        if not behind:
            return False
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return len(completed) >= self._startup_trials


class _Asha(_AfterStartup, SuccessiveHalvingPruner):
    """Asynchronous successive halving."""


class _Hyperband(_AfterStartup, HyperbandPruner):
    """Hyperband. A subclass, since Optuna's samplers look for the class itself."""


def _asha(spec: PrunerSpec) -> BasePruner:
    return _Asha(spec.startup_trials, min_resource=spec.first, reduction_factor=spec.reduction)


def _hyperband(spec: PrunerSpec) -> BasePruner:
    return _Hyperband(
        spec.startup_trials,
        min_resource=spec.first,
        max_resource=100,
        reduction_factor=spec.reduction,
    )


def _median(spec: PrunerSpec) -> BasePruner:
    return MedianPruner(n_startup_trials=spec.startup_trials, n_warmup_steps=spec.first - 1)


def _percentile(spec: PrunerSpec) -> BasePruner:
    return PercentilePruner(
        spec.percentile, n_startup_trials=spec.startup_trials, n_warmup_steps=spec.first - 1
    )


def _wilcoxon(spec: PrunerSpec) -> BasePruner:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return WilcoxonPruner(p_threshold=spec.p_threshold)


PRUNERS: dict[str, Callable[[PrunerSpec], BasePruner]] = {
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
    "percentile": _percentile,
    "wilcoxon": _wilcoxon,
    "none": lambda spec: NopPruner(),
}


def make_pruner(spec: PrunerSpec) -> BasePruner:
    """Return the pruner that ``spec`` names."""
    return PRUNERS[spec.name](spec)


def may_prune(spec: PrunerSpec, before: int, progress: int) -> bool:
    """Tell whether the pruner may end a trial at ``progress`` percent.

    Successive halving decides once where a trial gets past each of its rungs, and not between.

    Args:
        spec: of the pruner.
        before: where it was last asked and let the trial go on, in percent; 0: it was not.
        progress: where the trial is now.
    """
    if spec.name == "none":
        return False
    if spec.name not in ("asha", "hyperband"):
        return True
    rung = spec.first
    while rung <= before:
        rung *= spec.reduction
    return progress >= rung
