"""Studies whose every number is set by a test, for plots and the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sft_tune.spec.study import StudySpec
from sft_tune.store.importances import Importances
from sft_tune.store.records import StudyRecord
from sft_tune.store.rows import EvaluationRow, TrialRow
from sft_tune.view.material import Material
from tests.view.examples import NOW, rung_row, study_row, study_spec

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def study_record(spec: StudySpec | None = None, **changes: Any) -> StudyRecord:
    spec = spec or study_spec()
    values: dict[str, Any] = {
        "id": 1,
        "name": spec.name,
        "task": spec.task,
        "optuna_study_id": 1,
        "optuna_gone": False,
        "spec": spec,
        "spec_hash": "0",
        "text": "name: s\ntask: image-classification\n",
        "path": "/studies/s.yaml",
        "root": "/studies",
        "versions": {"torch": "2.14.0", "optuna": "5.0.0"},
        "metric": spec.objective.metric,
        "direction": spec.direction,
        "max_trials": 10,
        "max_hours": None,
        "target": None,
        "issued": 10,
        "active_seconds": 125.0,
        "created": START,
        "updated": START,
        "facts": {"examples": {"train": 500, "validation": 100}},
        "artifacts": "/runs",
        "ended": "trials",
    }
    return StudyRecord(**{**values, **changes})


def material(
    trials: Sequence[TrialRow] = (),
    rungs: Sequence[EvaluationRow] = (),
    *,
    importances: Importances | None = None,
    spec: StudySpec | None = None,
    managed: bool = True,
    **changes: Any,
) -> Material:
    """Return a study of ``trials``; ``changes`` are of its row."""
    row = study_row(managed=managed, **changes)
    if not managed:
        row = row._replace(metric=changes.get("metric"), task=None)
    return Material(
        study=row,
        trials=trials,
        rungs=rungs,
        importances=importances or Importances((), 0, missing="fewer than 4 trials have a value"),
        record=study_record(spec) if managed else None,
        now=NOW,
    )


def curve(number: int, values: Sequence[float]) -> list[EvaluationRow]:
    """Return rungs of trial ``number``, evenly spaced up to 100 %."""
    rows = [rung_row(number, 100 * (i + 1) // len(values), 0.0, i) for i in range(len(values))]
    return [
        row._replace(metrics_json=json.dumps({"accuracy": _strict(v), "loss": 1.0}))
        for row, v in zip(rows, values, strict=True)
    ]


def _strict(value: float) -> float | str:
    if value != value:
        return "NaN"
    return value if abs(value) != float("inf") else ("Infinity" if value > 0 else "-Infinity")
