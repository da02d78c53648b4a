"""The space of a study that is Optuna's alone: what its trials' distributions say."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select

from sft_tune.spec.space import Parameter, Value
from sft_tune.store import optuna_tables as optuna
from sft_tune.store.database import Database
from sft_tune.store.places import place_of


def foreign_space(db: Database, name: str) -> dict[str, Parameter]:
    """Return what the study ``name`` searched, by the name of the hyperparameter.

    Where trials differ in a range (a program was changed between two runs), it is from the
    lowest to the highest end; of choices those of all trials. What changed its kind, or has
    choices that no study file can have, is left out.

    Raises:
        StudyNotFoundError: neither we nor Optuna have the study.
    """
    with db.reading() as connection:
        place = place_of(connection, name)
        table = optuna.trial_params
        rows = connection.execute(
            select(table.c.param_name, table.c.distribution_json)
            .distinct()
            .join(optuna.trials, optuna.trials.c.trial_id == table.c.trial_id)
            .where(optuna.trials.c.study_id == place.optuna_id)
            .order_by(table.c.param_name, table.c.distribution_json)
        ).all()
    found: dict[str, list[dict[str, Any]]] = {}
    for param, text in rows:
        found.setdefault(param, []).append(json.loads(text))
    space = {param: _parameter(every) for param, every in found.items()}
    return {param: parameter for param, parameter in space.items() if parameter is not None}


def _parameter(every: list[dict[str, Any]]) -> Parameter | None:
    """Return the parameter that has the distributions ``every``."""
    names = [one["name"] for one in every]
    attributes = [one.get("attributes", {}) for one in every]
    if set(names) == {"CategoricalDistribution"}:
        choices = [choice for one in attributes for choice in one["choices"]]
        if not all(isinstance(choice, Value) for choice in choices):
            return None
        # 1, 1.0 and true are equal, and one choice to a sampler.
        return Parameter(values=tuple(dict.fromkeys(choices)))
    if "CategoricalDistribution" in names:
        return None
    # Databases of Optuna 2 say it by the name: LogUniform, IntLogUniform.
    log = any(one.get("log") or "Log" in name for one, name in zip(attributes, names, strict=True))
    low, high = min(one["low"] for one in attributes), max(one["high"] for one in attributes)
    if all(name.startswith("Int") for name in names):
        return Parameter(low=int(low), high=int(high), log=log)
    return Parameter(low=float(low), high=float(high), log=log)
