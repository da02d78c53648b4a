"""What Optuna's side keeps of a trial and a study: the keys of its user attributes.

They make Optuna Dashboard show the essentials, and survive what our rows do not follow: a study
that the dashboard renames is copied to a new id, attributes included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sft_tune.store.values import dumps, loads

if TYPE_CHECKING:
    from sft_tune.store.outcomes import EndedTrial
    from sft_tune.store.records import StudyRecord

PREFIX = "sft:"
CONFIG = "sft:config"
SEED = "sft:seed"
REASON = "sft:reason"
NOTE = "sft:note"
CHECKPOINT = "sft:checkpoint"
METRICS = "sft:metrics"
BEST_PROGRESS = "sft:best_progress"
SECONDS = "sft:seconds"
ATTEMPTS = "sft:attempts"
DUPLICATE_OF = "sft:duplicate_of"
FLAGS = "sft:flags"

STUDY = "sft:study"
SPEC = "sft:spec"

LONGEST_JSON = 60_000
"""Optuna's column is TEXT, which on MySQL ends at 65,535 bytes."""


def trial_attributes(trial: EndedTrial) -> dict[str, Any]:
    """Return the user attributes of an ended trial, to set on Optuna's before it is told."""
    return _fitting(
        {
            CONFIG: trial.config,
            SEED: trial.seed,
            REASON: trial.reason,
            NOTE: trial.note,
            CHECKPOINT: trial.checkpoint,
            METRICS: trial.metrics or None,
            BEST_PROGRESS: trial.best_progress,
            SECONDS: trial.seconds,
            ATTEMPTS: trial.attempts,
            DUPLICATE_OF: trial.duplicate_of,
            FLAGS: trial.flags or None,
        }
    )


def study_attributes(record: StudyRecord) -> dict[str, Any]:
    """Return the user attributes of a study, to set on Optuna's when it is made or changed."""
    essentials = {
        "name": record.name,
        "task": record.task,
        "metric": record.metric,
        "spec_hash": record.spec_hash,
    }
    return _fitting({STUDY: essentials, SPEC: record.spec.model_dump(mode="json")})


def _fitting(attributes: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is None or too long (our tables have it) and make the rest strict JSON."""
    texts = {key: dumps(value) for key, value in attributes.items() if value is not None}
    return {key: loads(text) for key, text in texts.items() if len(text) <= LONGEST_JSON}
