"""How much each hyperparameter matters for the objective, by Optuna's evaluator."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import load_optuna_study

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

FEWEST = 4
"""Below so many trials a ranking of hyperparameters says nothing."""


class Importances(NamedTuple):
    """The share of each hyperparameter in the differences between the trials.

    Attributes:
        shares: name and share, the largest first; they sum to 1. Empty: not known.
        trials: how many trials they are of.
        pruned: how many of these were pruned.
        missing: why there are none; empty where there are.
    """

    shares: tuple[tuple[str, float], ...]
    trials: int
    pruned: int = 0
    missing: str = ""

    @property
    def is_noisy(self) -> bool:
        """Whether the trials are too few to believe more than the first of the ranking."""
        return self.trials < max(20, 10 * len(self.shares))

    @property
    def leading(self) -> tuple[str, ...]:
        """The names, the most important first."""
        return tuple(name for name, _ in self.shares)


def param_importances(db: Database, name: str) -> Importances:
    """Return the importances of the hyperparameters of the study ``name``.

    Optuna's default evaluator: PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023), which asks
    how the best tenth of the trials differs from all of them, hyperparameters with a condition
    included. Left to itself it reads completed trials only; where a pruner cuts most, few are
    left. As it takes no more of a value than its rank, pruned trials are added here at what they
    had reached, and diverged ones as the worst: neither is among the best.

    Raises:
        StudyNotFoundError: Optuna has no study of this name.
    """
    return importances_of(load_optuna_study(db, name))


def importances_of(study: Study) -> Importances:
    """Return the importances of the hyperparameters of Optuna's ``study``."""
    from optuna import create_study
    from optuna.importance import get_param_importances
    from optuna.trial import TrialState, create_trial

    if len(study.directions) != 1:
        return Importances((), 0, missing="it has several objectives")
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    values = [_finite(trial) for trial in ended]
    known = [value for value in values if value is not None]
    if len(known) < FEWEST:
        return Importances((), len(known), missing=f"fewer than {FEWEST} trials have a value")
    if len(set(known)) == 1:
        return Importances((), len(known), missing="all trials have the same value")
    varied = _varied(ended)
    if not varied:
        return Importances((), len(known), missing="no hyperparameter was varied")
    worst = min(known) if study.direction.name == "MAXIMIZE" else max(known)
    with _quiet():
        ranked = create_study(direction=study.direction)
    ranked.add_trials(
        create_trial(
            value=worst if value is None else value,
            params=trial.params,
            distributions=trial.distributions,
        )
        for trial, value in zip(ended, values, strict=True)
    )
    found = get_param_importances(ranked, params=varied)
    shares = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    pruned = sum(trial.state == TrialState.PRUNED for trial in ended)
    return Importances(tuple((name, float(share)) for name, share in shares), len(ended), pruned)


def _finite(trial: FrozenTrial) -> float | None:
    """Return the trial's value, a pruned one's last report; None where that is no number."""
    value = trial.value
    if value is None and trial.intermediate_values:
        value = trial.intermediate_values[max(trial.intermediate_values)]
    return value if value is not None and math.isfinite(value) else None


def _varied(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return the names of the hyperparameters that have more than one value among ``trials``."""
    values: dict[str, set[Any]] = defaultdict(set)
    for trial in trials:
        for name, value in trial.params.items():
            values[name].add(value)
    return sorted(name for name, found in values.items() if len(found) > 1)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from telling of the study in memory."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
