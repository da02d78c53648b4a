"""How much each hyperparameter matters for the objective, by Optuna's evaluator."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Container, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, select

from sft_tune.store import optuna_tables
from sft_tune.store.database import Database
from sft_tune.store.foreign import optuna_trials, params_of, reports_of
from sft_tune.store.places import place_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState

FEWEST = 4
"""Below so many trials a ranking of hyperparameters says nothing."""
BEST_SHARE = 0.1
"""So many of the trials are the best ones, whose difference from all is asked for."""
FEWEST_BEST = 5
"""But at least so many, as Optuna's documentation of the evaluator advises; half at the most."""


class Importances(NamedTuple):
    """The share of each hyperparameter in the differences between the trials.

    Attributes:
        shares: name and share, the largest first; they sum to 1. Empty: not known.
        trials: how many trials they are of.
        pruned: how many of these were pruned.
        missing: why there are none; empty where there are.
        best: how many of the trials were taken as the best.
    """

    shares: tuple[tuple[str, float], ...]
    trials: int
    pruned: int = 0
    missing: str = ""
    best: int = 0

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
    how the best tenth of the trials (of few trials, the best five) differs from all of them,
    hyperparameters with a condition included. Left to itself it reads completed trials only;
    where a pruner cuts most, few are left. As it takes no more of a value than its rank, pruned
    trials are added here at what they had reached, and diverged ones as the worst: neither is
    among the best.

    Raises:
        StudyNotFoundError: neither we nor Optuna have the study.
    """
    with db.reading() as connection:
        place = place_of(connection, name)
        if place.optuna_id is None:
            return Importances((), 0, missing="its Optuna side is gone")
        if _objectives(connection, place.optuna_id) != 1:
            return Importances((), 0, missing="it has several objectives")
        ended = _ended(connection, place.optuna_id)
    return importances_of(ended, maximize=place.direction == "maximize")


def importances_of(ended: Sequence[FrozenTrial], *, maximize: bool) -> Importances:
    """Return the importances of the hyperparameters of the trials ``ended``, completed or pruned.

    Args:
        ended: of Optuna's; of their user attributes nothing is read.
        maximize: whether more is better.
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    values = [_finite(trial) for trial in ended]
    known = [value for value in values if value is not None]
    if len(known) < FEWEST:
        return Importances((), len(known), missing=f"fewer than {FEWEST} trials have a value")
    if len(set(known)) == 1:
        return Importances((), len(known), missing="all trials have the same value")
    varied = _varied(ended)
    if not varied:
        return Importances((), len(known), missing="no hyperparameter was varied")
    worst = min(known) if maximize else max(known)
    ranked = [
        _frozen(trial.number, worst if value is None else value, trial.params, trial.distributions)
        for trial, value in zip(ended, values, strict=True)
    ]
    few = min(FEWEST_BEST, math.ceil(len(ranked) / 2))
    best = max(few, math.ceil(BEST_SHARE * len(ranked)))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=best / len(ranked))
    study = _study_of(ranked, maximize)
    found = get_param_importances(study, evaluator=evaluator, params=varied)
    shares = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    pruned = sum(trial.state == TrialState.PRUNED for trial in ended)
    named = tuple((name, float(share)) for name, share in shares)
    return Importances(named, len(ended), pruned, best=best)


def _objectives(connection: Connection, study_id: int) -> int:
    table = optuna_tables.study_directions
    rows = connection.execute(select(table.c.objective).where(table.c.study_id == study_id))
    return len(rows.all())


def _ended(connection: Connection, study_id: int) -> list[FrozenTrial]:
    """Return the completed and pruned trials of Optuna's study with parameters and value.

    Optuna's own reading takes the user attributes along, our configurations among them: most of
    the time of a study of 10,000 trials.
    """
    from optuna.distributions import json_to_distribution
    from optuna.trial import TrialState

    found = optuna_trials(connection, study_id)
    kept = [trial for trial in found if trial.state in ("COMPLETE", "PRUNED")]
    ids = [trial.trial_id for trial in kept]
    without = [trial.trial_id for trial in kept if trial.value is None]
    reports: dict[int, dict[int, float]] = defaultdict(dict)
    for trial_id, step, value in reports_of(connection, study_id, without):
        if value is not None:
            reports[trial_id][step] = value
    known = cache(json_to_distribution)
    params: dict[int, dict[str, Any]] = defaultdict(dict)
    kinds: dict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, name, value, text in params_of(connection, study_id, ids):
        kinds[trial_id][name] = known(text)
        params[trial_id][name] = known(text).to_external_repr(value)
    return [
        _frozen(
            trial.number,
            trial.value,
            params[trial.trial_id],
            kinds[trial.trial_id],
            TrialState[trial.state],
            reports.get(trial.trial_id),
        )
        for trial in kept
    ]


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


def _frozen(
    number: int,
    value: float | None,
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution],
    state: TrialState | None = None,
    reports: dict[int, float] | None = None,
) -> FrozenTrial:
    from optuna.trial import FrozenTrial, TrialState

    return FrozenTrial(
        number=number,
        trial_id=number,
        state=TrialState.COMPLETE if state is None else state,
        value=value,
        params=params,
        distributions=distributions,
        intermediate_values=reports or {},
        datetime_start=None,
        datetime_complete=None,
        user_attrs={},
        system_attrs={},
    )


def _study_of(trials: list[FrozenTrial], maximize: bool) -> Study:
    """Return a study that has ``trials`` as they are: one in memory would copy each of them."""
    from optuna import Study, create_study, logging
    from optuna.storages import InMemoryStorage

    class Given(Study):
        def get_trials(
            self, deepcopy: bool = True, states: Container[TrialState] | None = None
        ) -> list[FrozenTrial]:
            return [trial for trial in trials if states is None or trial.state in states]

    storage = InMemoryStorage()
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        made = create_study(storage=storage, direction="maximize" if maximize else "minimize")
    finally:
        logging.set_verbosity(before)
    return Given(made.study_name, storage)
