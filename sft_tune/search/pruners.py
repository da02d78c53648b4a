"""The pruners by name. Their resource is a trial's progress over its own schedule, in percent."""

from __future__ import annotations

import warnings
from collections.abc import Callable

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

from sft_tune.spec.study import PrunerSpec


def _asha(spec: PrunerSpec) -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=spec.first, reduction_factor=spec.reduction)


def _hyperband(spec: PrunerSpec) -> BasePruner:
    return HyperbandPruner(
        min_resource=spec.first, max_resource=100, reduction_factor=spec.reduction
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
