"""What the tests of the store share: a database with tables, a study in it, trials on their way."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import TrialState

from sft_tune.spec.config import assemble
from sft_tune.spec.study import StudySpec
from sft_tune.store import claims, studies
from sft_tune.store.attributes import trial_attributes
from sft_tune.store.database import Database
from sft_tune.store.studies import StudyRecord
from tests.databases import backend, database_url, db, empty_url, prepared

__all__ = ["backend", "database_url", "db", "empty_url", "prepared"]

NOW = 1_800_000_000.0
LEASE = 60.0


def make_spec(name: str = "study", **sections: Any) -> StudySpec:
    """Return a small valid study; keyword arguments replace its sections."""
    return StudySpec.model_validate(
        {
            "name": name,
            "task": "image-classification",
            "data": {"source": "sklearn:digits"},
            "model": {"name": "builtin:convnet", "weights": "none"},
            "space": {
                "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
                "optimizer": ["adamw", "sgd"],
            },
            "budget": {"trials": 50},
            **sections,
        }
    )


def register(db: Database, spec: StudySpec | None = None, **changes: Any) -> StudyRecord:
    """Register ``spec`` (or a small study) with plausible facts about it."""
    arguments: dict[str, Any] = {
        "text": "name: study  # as written, with Ümläuts and 語",
        "path": "/data/study.yaml",
        "root": "/data",
        "versions": {"torch": "2.15"},
        "facts": {"labels": ["a", "b"]},
        "artifacts": "/runs/study",
        "now": NOW,
    }
    return studies.register_study(db, spec or make_spec(), **{**arguments, **changes})


def take(db: Database, study: StudyRecord, owner: str = "me", now: float = NOW) -> claims.Claim:
    """Claim the next ticket, which there must be."""
    claim = claims.claim_new(
        db, study.id, owner=owner, now=now, lease_seconds=LEASE, limit=study.max_trials
    )
    assert claim is not None
    return claim


def take_abandoned(
    db: Database,
    study: StudyRecord,
    owner: str = "other",
    now: float = NOW,
    dead: tuple[str, ...] = (),
) -> claims.Claim | None:
    return claims.claim_abandoned(
        db, study.id, owner=owner, now=now, lease_seconds=LEASE, is_dead=lambda who: who in dead
    )


def start(
    db: Database, study: StudyRecord, params: dict[str, Any] | None = None, owner: str = "me"
) -> claims.Claim:
    """Claim a ticket, open Optuna's trial for it and begin it, as a runner does."""
    claim = take(db, study, owner)
    storage = studies.open_optuna_storage(db)
    trial_id = storage.create_new_trial(study.optuna_study_id)
    number = storage.get_trial_number_from_id(trial_id)
    return begin(db, study, claims.link(db, claim, trial_id, number), params)


def begin(
    db: Database, study: StudyRecord, claim: claims.Claim, params: dict[str, Any] | None = None
) -> claims.Claim:
    params = {"learning_rate": 0.01, "optimizer": "sgd"} if params is None else params
    config = assemble(study.spec, params, claim.number or 0)
    return claims.begin(
        db, claim, config=config, params=params, device="cpu", host="here", now=NOW + 1
    )


def rung(progress: int = 10, accuracy: float = 0.5, **changes: Any) -> dict[str, Any]:
    """Return an evaluation as a worker sends it."""
    return {
        "progress": progress,
        "epoch": progress / 10,
        "step": progress * 3,
        "horizon": 300,
        "train_loss": 0.7,
        "metrics": {"accuracy": accuracy, "loss": 0.6, "f1_macro": 0.4},
        "learning_rate": 1e-3,
        "gradient_norm": 1.5,
        "gradient_norm_max": 4.5,
        "update_ratio": 2e-3,
        "samples_per_second": 321.0,
        "memory": 5_000_000_000,
        "seconds": progress / 4,
        **changes,
    }


def outcome(reason: str = "completed", value: float | None = 0.9, **changes: Any) -> dict[str, Any]:
    """Return an outcome as a worker sends it."""
    return {
        "reason": reason,
        "note": "",
        "value": value,
        "metrics": {"accuracy": 0.9, "loss": 0.3},
        "best_progress": 80,
        "steps": 300,
        "horizon": 300,
        "seconds": 12.5,
        "peak_memory": 5_000_000_000,
        "samples_per_second": 321.0,
        "checkpoint": "/runs/study/trial-00000/best.safetensors",
        "resumed_from": 0,
        **changes,
    }


def finish(db: Database, study: StudyRecord, claim: claims.Claim, result: dict[str, Any]) -> None:
    """End the trial, tell Optuna and write that down, as a runner does."""
    ended = claims.end(db, claim, result, now=NOW + 20)
    storage = studies.open_optuna_storage(db)
    for key, value in trial_attributes(ended).items():
        storage.set_trial_user_attr(ended.optuna_trial_id, key, value)
    values = None if ended.state == "FAIL" or ended.value is None else [ended.value]
    storage.set_trial_state_values(ended.optuna_trial_id, TrialState[ended.state], values)
    claims.mark_told(db, ended)


@pytest.fixture
def study(db: Database) -> StudyRecord:
    """A study of 50 trials in the database."""
    return register(db)
