"""Studies, rows and goals that the tests of `view` look at."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from sft_tune.spec.study import StudySpec
from sft_tune.store.rows import EvaluationRow, StudyRow, TrialRow
from sft_tune.view.progress import Goal, Past

DEFAULT: dict[str, Any] = {"learning_rate": 1e-4, "model.weights": "DEFAULT"}
NOW = 1_800_000_000.0


def study_spec(**sections: Any) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "task": "image-classification",
            "data": {"source": "sklearn:digits"},
            "model": {"name": "builtin:convnet"},
            "space": {
                "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
                "model.weights": ["DEFAULT", "none"],
            },
            **sections,
        }
    )


def goal(**changes: Any) -> Goal:
    values: dict[str, Any] = {
        "study": "s",
        "metric": "accuracy",
        "maximize": True,
        "storage": "sqlite:///x.db",
        "default": DEFAULT,
        "trials": 10,
    }
    return Goal(**{**values, **changes})


def past(number: int, value: float | None = 0.5, **changes: Any) -> Past:
    values: dict[str, Any] = {
        "number": number,
        "reason": "completed",
        "value": value,
        "seconds": 10.0,
        "params": {**DEFAULT, "learning_rate": 1e-3 * (number + 1)},
    }
    return Past(**{**values, **changes})


def trial_row(number: int, value: float | None = 0.5, **changes: Any) -> TrialRow:
    params = changes.pop("params", {**DEFAULT, "learning_rate": 1e-3 * (number + 1)})
    config = changes.pop("config", None)
    metrics = changes.pop("metrics", {} if value is None else {"accuracy": value, "loss": 1.0})
    row = TrialRow(
        number=number,
        state="COMPLETE",
        phase="ended",
        reason="completed",
        value=value,
        params_json=json.dumps(params),
        config_json=None if config is None else json.dumps(config),
        metrics_json=json.dumps(metrics),
        best_progress=90,
        last_progress=100,
        last_value=value,
        seconds=10.0,
        attempts=1,
        checkpoint=f"/runs/trial-{number:05d}/best.safetensors",
        started=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
        ended=datetime(2026, 3, 1, 12, 0, tzinfo=UTC) + timedelta(minutes=number),
        host="box",
        device="CPU",
    )
    return row._replace(**changes)


def pruned_row(number: int, **changes: Any) -> TrialRow:
    ended: dict[str, Any] = {
        "state": "PRUNED",
        "reason": "pruned",
        "last_progress": 20,
        "checkpoint": None,
    }
    return trial_row(number, **{**ended, **changes})


def running_row(number: int, **changes: Any) -> TrialRow:
    running: dict[str, Any] = {
        "state": "RUNNING",
        "phase": "running",
        "reason": None,
        "last_progress": 40,
        "last_value": 0.4,
        "checkpoint": None,
        "ended": None,
        "seconds": None,
        "lease_owner": "box:77:1.5",
        "lease_expires": NOW + 60,
    }
    return trial_row(number, None, **{**running, **changes})


def rung_row(number: int, progress: int, accuracy: float, seconds: float) -> EvaluationRow:
    return EvaluationRow(
        number=number,
        progress=progress,
        epoch=progress / 50,
        step=progress,
        train_loss=1.5,
        validation_loss=1.25,
        metrics_json=json.dumps({"loss": 1.25, "accuracy": accuracy}),
        learning_rate=3.2e-5,
        gradient_norm=0.75,
        seconds=seconds,
    )


def study_row(**changes: Any) -> StudyRow:
    row = StudyRow(
        name="s",
        task="image-classification",
        metric="accuracy",
        direction="maximize",
        states={"COMPLETE": 3, "PRUNED": 2, "RUNNING": 1},
        best=0.9,
        created=datetime(2026, 3, 1, 12, 0, tzinfo=UTC),
        ended=None,
        max_trials=10,
        max_hours=None,
        target=None,
        issued=6,
        active_seconds=125.0,
        lease_until=None,
        artifacts="/runs",
        extra_trials=0,
        wanted=None,
        priority=0,
        managed=True,
        optuna_study_id=1,
    )
    return row._replace(**changes)
