"""Optuna's trials as the dispatcher's storage reads them: what Optuna reads, at less cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import RDBStorage, get_storage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event

from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import open_optuna_storage
from tests.store.conftest import NOW

DISTRIBUTIONS = {
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
    "epochs": IntDistribution(1, 20),
    "schedule": CategoricalDistribution([None, "cosine", "linear"]),
}
WHEN = datetime.fromtimestamp(NOW)


def a_trial(state: TrialState, **changes: Any) -> FrozenTrial:
    ended = state.is_finished()
    facts: dict[str, Any] = {
        **{"number": 0, "trial_id": 0, "state": state, "value": None, "datetime_start": WHEN},
        "datetime_complete": WHEN if ended else None,
        "values": [0.5] if state == TrialState.COMPLETE else None,
        "params": {"schedule": None, "rate": 0.001, "epochs": 7},
        "distributions": DISTRIBUTIONS,
        "user_attrs": {"sft:config": {"epochs": 7, "name": "ä語"}},
        "system_attrs": {"fixed_params": {"epochs": 7}},
        "intermediate_values": {20: 0.2, 10: 0.1},
        **changes,
    }
    return FrozenTrial(**facts)


TRIALS = [
    a_trial(TrialState.COMPLETE),
    a_trial(TrialState.COMPLETE, values=[math.inf]),
    a_trial(TrialState.PRUNED, intermediate_values={10: math.nan, 20: -math.inf, 30: math.inf}),
    a_trial(TrialState.FAIL, params={}, distributions={}, intermediate_values={}),
    a_trial(TrialState.RUNNING, user_attrs={}, system_attrs={}),
    a_trial(TrialState.WAITING, datetime_start=None, params={}, distributions={}),
]


@contextmanager
def by_optuna(db: Database) -> Iterator[RDBStorage]:
    """Give Optuna's own storage on the database."""
    theirs = RDBStorage(db.url, skip_table_creation=True)
    try:
        yield theirs
    finally:
        theirs.remove_session()
        theirs.engine.dispose()


def filled(storage: RDBStorage, name: str = "x") -> int:
    study = optuna.create_study(storage=storage, study_name=name)
    study.add_trials(TRIALS)
    return study._study_id


def facts_of(trial: FrozenTrial) -> dict[str, Any]:
    reports = {step: str(value) for step, value in trial.intermediate_values.items()}
    # A sampler draws parameters in their order. NaN equals nothing.
    return {**vars(trial), "order": [*trial.params], "intermediate_values": reports}


@pytest.mark.parametrize("states", [None, (TrialState.COMPLETE, TrialState.RUNNING), ()])
def test_trials_are_read_as_optuna_reads_them(
    db: Database, states: tuple[TrialState, ...] | None
) -> None:
    ours = open_optuna_storage(db)
    filled(ours, "other")
    study_id = filled(ours)
    found = ours.get_all_trials(study_id, states=states)
    with by_optuna(db) as theirs:
        expected = theirs.get_all_trials(study_id, states=states)
    assert [facts_of(trial) for trial in found] == [facts_of(trial) for trial in expected]
    assert len(found) == sum(states is None or trial.state in states for trial in TRIALS)


def test_the_values_of_several_objectives_are_in_their_order(db: Database) -> None:
    study = optuna.create_study(
        storage=open_optuna_storage(db), study_name="two", directions=["minimize", "maximize"]
    )
    study.add_trial(a_trial(TrialState.COMPLETE, values=[3.0, 1.0]))
    assert study.trials[0].values == [3.0, 1.0]


def test_a_trial_that_ran_when_it_was_read_is_read_again(db: Database) -> None:
    ours = open_optuna_storage(db)
    kept = get_storage(ours)  # as a study has it: it keeps what has ended
    study_id = filled(ours)
    running = next(t for t in kept.get_all_trials(study_id) if t.state == TrialState.RUNNING)
    with by_optuna(db) as theirs:
        theirs.set_trial_intermediate_value(running._trial_id, 90, 0.9)
        theirs.set_trial_state_values(running._trial_id, TrialState.COMPLETE, [0.9])
        theirs.create_new_trial(study_id, TRIALS[0])
    after = kept.get_all_trials(study_id)
    assert len(after) == len(TRIALS) + 1
    assert after[running.number].values == [0.9]
    assert after[running.number].intermediate_values[90] == 0.9


def test_trials_of_a_study_that_is_gone_are_refused(db: Database) -> None:
    with pytest.raises(KeyError):
        open_optuna_storage(db).get_all_trials(12345)


def test_no_row_of_a_trial_becomes_an_object_on_its_way_to_the_sampler(db: Database) -> None:
    from optuna.storages._rdb.models import BaseModel

    ours = open_optuna_storage(db)
    filled(ours)
    study = optuna.load_study(study_name="x", storage=ours)
    loaded: list[str] = []

    def note(row: Any, _context: Any) -> None:
        loaded.append(type(row).__name__)

    event.listen(BaseModel, "load", note, propagate=True)
    try:
        assert len(study.get_trials(deepcopy=False)) == len(TRIALS)
    finally:
        event.remove(BaseModel, "load", note)
    assert set(loaded) <= {"StudyModel"}
