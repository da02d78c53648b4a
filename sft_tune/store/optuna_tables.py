"""Those of Optuna's tables that we read, as Optuna 5.0 makes them; Optuna alone writes them.

Reading them without Optuna keeps `status` and `best` quick. User attributes and reports are written
here too, many at once (see `optuna_storage`).
"""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any, overload

from sqlalchemy import (
    Column,
    DateTime,
    Double,
    Enum,
    Integer,
    MetaData,
    Named,
    String,
    Table,
    Text,
    TypedColumns,
)

metadata = MetaData()

FINISHED = ("COMPLETE", "PRUNED", "FAIL")
STATES = ("RUNNING", *FINISHED, "WAITING")

_INFINITIES = {"INF_POS": float("inf"), "INF_NEG": float("-inf"), "NAN": float("nan")}


class _Studies(TypedColumns):
    study_id: Named[int] = Column(Integer, primary_key=True)
    study_name: Named[str] = Column(String(512))


class _StudyDirections(TypedColumns):
    study_direction_id: Named[int] = Column(Integer, primary_key=True)
    direction: Named[str] = Column(Enum("NOT_SET", "MINIMIZE", "MAXIMIZE", name="studydirection"))
    study_id: Named[int] = Column(Integer)
    objective: Named[int] = Column(Integer)


class _StudyUserAttributes(TypedColumns):
    study_user_attribute_id: Named[int] = Column(Integer, primary_key=True)
    study_id: Named[int] = Column(Integer)
    key: Named[str] = Column(String(512))
    value_json: Named[str] = Column(Text)


class _Trials(TypedColumns):
    trial_id: Named[int] = Column(Integer, primary_key=True)
    number: Named[int] = Column(Integer)
    study_id: Named[int] = Column(Integer)
    state: Named[str] = Column(Enum(*STATES, name="trialstate"))
    datetime_start: Named[datetime | None] = Column(DateTime)
    datetime_complete: Named[datetime | None] = Column(DateTime)


class _TrialValues(TypedColumns):
    trial_value_id: Named[int] = Column(Integer, primary_key=True)
    trial_id: Named[int] = Column(Integer)
    objective: Named[int] = Column(Integer)
    value: Named[float | None] = Column(Double)
    value_type: Named[str] = Column(Enum("FINITE", "INF_POS", "INF_NEG", name="trialvaluetype"))


class _TrialIntermediateValues(TypedColumns):
    trial_intermediate_value_id: Named[int] = Column(Integer, primary_key=True)
    trial_id: Named[int] = Column(Integer)
    step: Named[int] = Column(Integer)
    intermediate_value: Named[float | None] = Column(Double)
    intermediate_value_type: Named[str] = Column(
        Enum("FINITE", "INF_POS", "INF_NEG", "NAN", name="trialintermediatevaluetype")
    )


class _TrialParams(TypedColumns):
    param_id: Named[int] = Column(Integer, primary_key=True)
    trial_id: Named[int] = Column(Integer)
    param_name: Named[str] = Column(String(512))
    param_value: Named[float] = Column(Double)
    distribution_json: Named[str] = Column(Text)


class _TrialUserAttributes(TypedColumns):
    trial_user_attribute_id: Named[int] = Column(Integer, primary_key=True)
    trial_id: Named[int] = Column(Integer)
    key: Named[str] = Column(String(512))
    value_json: Named[str] = Column(Text)


class _TrialSystemAttributes(TypedColumns):
    trial_system_attribute_id: Named[int] = Column(Integer, primary_key=True)
    trial_id: Named[int] = Column(Integer)
    key: Named[str] = Column(String(512))
    value_json: Named[str] = Column(Text)


studies = Table("studies", metadata, _Studies)
study_directions = Table("study_directions", metadata, _StudyDirections)
study_user_attributes = Table("study_user_attributes", metadata, _StudyUserAttributes)
trials = Table("trials", metadata, _Trials)
trial_values = Table("trial_values", metadata, _TrialValues)
trial_intermediate_values = Table("trial_intermediate_values", metadata, _TrialIntermediateValues)
trial_params = Table("trial_params", metadata, _TrialParams)
trial_user_attributes = Table("trial_user_attributes", metadata, _TrialUserAttributes)
trial_system_attributes = Table("trial_system_attributes", metadata, _TrialSystemAttributes)


@overload
def stored_float(value: float | None, kind: str) -> float: ...


@overload
def stored_float(value: float | None, kind: str | None) -> float | None: ...


def stored_float(value: float | None, kind: str | None) -> float | None:
    """Return the number of a ``value`` column and its ``..._type`` column; None without a row."""
    return value if kind in (None, "FINITE") else _INFINITIES[kind]


def report_columns(value: float) -> dict[str, Any]:
    """Return the two columns that keep the reported ``value``."""
    if math.isfinite(value):
        return {"intermediate_value": value, "intermediate_value_type": "FINITE"}
    kinds = {str(number): kind for kind, number in _INFINITIES.items()}
    return {"intermediate_value": None, "intermediate_value_type": kinds[str(value)]}


def stored_param(value: float, distribution_json: str) -> Any:
    """Return the parameter's value as a person knows it, from Optuna's number and distribution."""
    distribution = json.loads(distribution_json)
    attributes = distribution.get("attributes", {})
    name = distribution.get("name", "")
    if name == "CategoricalDistribution":
        return attributes["choices"][int(value)]
    # Databases of Optuna 2 name whole numbers IntUniform and IntLogUniform.
    return int(value) if name.startswith("Int") else value
