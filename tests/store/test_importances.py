"""Importances of studies whose truth is set here: one hyperparameter decides, others do nothing."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from sft_tune.store.database import Database
from sft_tune.store.importances import importances_of, param_importances
from sft_tune.store.optuna_storage import open_optuna_storage

SPACE: dict[str, Any] = {
    "matters": FloatDistribution(0.0, 1.0),
    "helps": FloatDistribution(0.0, 1.0),
    "idle": FloatDistribution(0.0, 1.0),
    "fixed": CategoricalDistribution(["same"]),
}


def study_of(count: int, direction: str = "maximize", pruned_below: float = -math.inf) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=direction)
    sign = 1.0 if direction == "maximize" else -1.0
    for i in range(count):
        # Evenly spread over the cube (Kronecker's sequence), so that nothing depends on luck.
        point = [(i * ratio) % 1.0 for ratio in (0.8191725134, 0.6710436067, 0.5497004779)]
        params = dict(zip(("matters", "helps", "idle"), point, strict=True), fixed="same")
        value = 10 * params["matters"] + 2 * params["helps"]
        state = TrialState.PRUNED if value < pruned_below else TrialState.COMPLETE
        reports = {10: sign * value} if state is TrialState.PRUNED else {}
        study.add_trial(
            create_trial(
                state=state,
                value=None if reports else sign * value,
                params=params,
                distributions=SPACE,
                intermediate_values=reports,
            )
        )
    return study


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_the_hyperparameter_that_decides_comes_first_and_the_idle_one_last(direction: str) -> None:
    found = importances_of(study_of(400, direction).trials, maximize=direction == "maximize")
    assert found.leading == ("matters", "helps", "idle")
    shares = dict(found.shares)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["matters"] > 0.75
    assert shares["idle"] < 0.05
    assert (found.trials, found.pruned, found.is_noisy) == (400, 0, False)


def test_pruned_trials_tell_where_not_to_look() -> None:
    found = importances_of(study_of(400, pruned_below=9.0).trials, maximize=True)
    assert found.leading[0] == "matters"
    assert found.pruned > 200
    assert dict(found.shares)["matters"] > 0.75


def test_a_diverged_trial_counts_as_the_worst_and_an_infinite_one_too() -> None:
    study = study_of(60)
    for value in (math.nan, math.inf):
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED,
                params={"matters": 0.0, "helps": 0.0, "idle": 0.0, "fixed": "same"},
                distributions=SPACE,
                intermediate_values={10: value},
            )
        )
    found = importances_of(study.trials, maximize=True)
    assert (found.trials, found.pruned, found.leading[0]) == (62, 2, "matters")


def test_the_best_of_few_trials_are_five_and_half_at_the_most() -> None:
    told = [importances_of(study_of(n).trials, maximize=True).best for n in (4, 7, 24, 400)]
    assert told == [2, 4, 5, 40]


def test_of_few_trials_nothing_is_said() -> None:
    found = importances_of(study_of(3).trials, maximize=True)
    assert found.shares == () and "fewer than 4" in found.missing


def test_a_database_says_what_its_trials_do(db: Database) -> None:
    in_memory = study_of(30, pruned_below=4.0)
    made = optuna.create_study(
        storage=open_optuna_storage(db), study_name="x", direction="maximize"
    )
    made.add_trials(in_memory.trials)
    found = param_importances(db, "x")
    assert found == importances_of(in_memory.trials, maximize=True)
    assert 0 < found.pruned < found.trials == 30


def test_of_several_objectives_nothing_is_said(db: Database) -> None:
    directions = ["maximize", "minimize"]
    optuna.create_study(storage=open_optuna_storage(db), study_name="x", directions=directions)
    assert "several objectives" in param_importances(db, "x").missing
