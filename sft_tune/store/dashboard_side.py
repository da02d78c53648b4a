"""What Optuna Dashboard keeps beside a study: its notes, artifacts and plots, as attributes."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import Any

from sft_tune.store.database import Database
from sft_tune.store.foreign import optuna_trials
from sft_tune.store.optuna_storage import open_optuna_storage

_NOTE = re.compile(r"dashboard:(?:(\d+):)?note_str:(\d+)")
_VERSION = re.compile(r"dashboard:(?:(\d+):)?note_ver")
_ARTIFACT = "dashboard:artifacts:{trial_id}:{artifact_id}"


class DashboardSide:
    """The attributes of one of Optuna's studies that the dashboard reads, as they stood.

    Attributes:
        trial_ids: Optuna's id of each trial, by number.
    """

    def __init__(self, db: Database, study_id: int) -> None:
        """Read them of Optuna's study ``study_id``."""
        self._storage = open_optuna_storage(db)
        self._study_id = study_id
        self._attributes: dict[str, Any] = self._storage.get_study_system_attrs(study_id)
        with db.reading() as connection:
            self.trial_ids = {t.number: t.trial_id for t in optuna_trials(connection, study_id)}
        self._notes = _notes(self._attributes)

    def note(self, trial_id: int | None) -> str | None:
        """Return the note of a trial, or of the study; None where none was ever written."""
        return self._notes.get(trial_id)

    def has_artifact(self, trial_id: int, artifact_id: str) -> bool:
        """Tell whether the trial has, or had and was rid of, this artifact."""
        return _ARTIFACT.format(trial_id=trial_id, artifact_id=artifact_id) in self._attributes

    def add_artifact(self, trial_id: int, artifact_id: str, filename: str, mimetype: str) -> None:
        """Let the page of a trial show an artifact."""
        told = {
            "artifact_id": artifact_id,
            "filename": filename,
            "mimetype": mimetype,
            "encoding": None,
        }
        key = _ARTIFACT.format(trial_id=trial_id, artifact_id=artifact_id)
        self._storage.set_study_system_attr(self._study_id, key, json.dumps(told))


def _notes(attributes: dict[str, Any]) -> dict[int | None, str]:
    parts: dict[int | None, dict[int, str]] = defaultdict(dict)
    for key, value in attributes.items():
        if match := _NOTE.fullmatch(key):
            parts[_id(match)][int(match[2])] = value
        elif match := _VERSION.fullmatch(key):
            parts[_id(match)]  # noqa: B018 (an empty note was written, too)
    return {owner: "".join(own[i] for i in sorted(own)) for owner, own in parts.items()}


def _id(match: re.Match[str]) -> int | None:
    return None if match[1] is None else int(match[1])
