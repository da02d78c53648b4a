"""Rows of the store as flat records: what CSV files, JSON and data frames are made of."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from sft_tune.store.rows import EvaluationRow, StudyRow, TrialRow

METRIC_PREFIX = "validation_"

_BEFORE = ("number", "state", "reason", "value")
_AFTER = (
    *("best_progress", "last_progress", "steps", "horizon", "seconds", "samples_per_second"),
    *("peak_memory", "attempts", "seed", "started", "ended", "host", "device", "duplicate_of"),
    *("checkpoint", "flags", "note"),
)
_RUNG = (
    *("number", "progress", "epoch", "step", "train_loss", "learning_rate", "gradient_norm"),
    *("gradient_norm_max", "update_ratio", "samples_per_second", "memory", "examples", "seconds"),
)

TRIAL_COLUMNS = (*_BEFORE, *_AFTER)
"""The columns of `trial_records` beside parameters and metrics."""

RUNG_COLUMNS = _RUNG
"""The columns of `evaluation_records` beside metrics."""


def trial_records(rows: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """Return a flat record a trial, all with the same keys.

    Parameters stand under their own names (``learning_rate``, ``model.name``), metrics at the
    best rung with the split that they are of (``validation_accuracy``).
    """
    parsed = [(row, row.params, row.metrics) for row in rows]
    params = list(dict.fromkeys(name for _, own, _ in parsed for name in own))
    metrics = list(dict.fromkeys(name for _, _, own in parsed for name in own))
    return [
        {
            **{name: getattr(row, name) for name in _BEFORE},
            **{name: own_params.get(name) for name in params},
            **{METRIC_PREFIX + name: own_metrics.get(name) for name in metrics},
            **{name: getattr(row, name) for name in _AFTER},
        }
        for row, own_params, own_metrics in parsed
    ]


def evaluation_records(rows: Sequence[EvaluationRow]) -> list[dict[str, Any]]:
    """Return a flat record a rung, all with the same keys; metrics as in `trial_records`."""
    parsed = [(row, row.metrics) for row in rows]
    metrics = list(dict.fromkeys(name for _, own in parsed for name in own))
    return [
        {
            **{name: getattr(row, name) for name in _RUNG},
            **{METRIC_PREFIX + name: own.get(name) for name in metrics},
        }
        for row, own in parsed
    ]


def trial_json(row: TrialRow) -> dict[str, Any]:
    """Return a trial as nested JSON: parameters and metrics in mappings of their own."""
    return {
        **{name: getattr(row, name) for name in _BEFORE},
        "params": row.params,
        "metrics": row.metrics,
        **{name: getattr(row, name) for name in _AFTER},
    }


def evaluation_json(row: EvaluationRow) -> dict[str, Any]:
    """Return a rung as nested JSON: metrics in a mapping of their own."""
    return {**{name: getattr(row, name) for name in _RUNG[1:]}, "metrics": row.metrics}


def study_json(row: StudyRow, now: float) -> dict[str, Any]:
    """Return a study at a glance as JSON; ``now`` in seconds since 1970."""
    names = (
        *("name", "task", "metric", "direction", "best", "states", "max_trials", "max_hours"),
        *("target", "issued", "active_seconds", "created", "ended", "artifacts"),
    )
    return {
        **{name: getattr(row, name) for name in names},
        "active_seconds": row.active_at(now),
        "running": row.is_running(now),
    }


def to_csv(records: Sequence[dict[str, Any]]) -> str:
    """Return ``records`` as CSV with a header; None is an empty field."""
    text = io.StringIO()
    if records:
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return text.getvalue()


def to_parquet(records: Sequence[dict[str, Any]]) -> bytes:
    """Return ``records`` as a Parquet file.

    A column has one type: numbers stay numbers, and a column of several kinds (a hyperparameter
    whose choices are numbers and words) or of lists and mappings becomes text.
    """
    import pyarrow
    from pyarrow import parquet

    names = list(records[0]) if records else []
    columns = {}
    for name in names:
        values = [record[name] for record in records]
        try:
            if any(isinstance(value, dict | list | tuple) for value in values):
                raise pyarrow.ArrowInvalid("nested")
            columns[name] = pyarrow.array(values)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
            columns[name] = pyarrow.array([_as_text(value) for value in values], pyarrow.string())
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, default=str)
