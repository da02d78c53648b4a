"""A database with one large study in it, written straight into the tables in seconds."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any

from optuna.distributions import distribution_to_json
from sqlalchemy import Table, insert, update

from sft_tune.search.distributions import to_distribution
from sft_tune.spec.config import assemble
from sft_tune.spec.space import Value
from sft_tune.spec.study import StudySpec
from sft_tune.store import optuna_tables, tables
from sft_tune.store.attributes import CONFIG, REASON, SEED
from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord, find_study
from sft_tune.store.studies import register_study
from sft_tune.store.values import utc

RUNGS = 10
SECONDS = 60.0
"""Of a trial."""
Row = dict[str, Any]


def fill(db: Database, spec: StudySpec, trials: int, artifacts: str = "/nowhere") -> StudyRecord:
    """Register the study ``spec`` in ``db`` with ``trials`` ended ones; return it.

    Configurations are random; every third trial is completed, the others are pruned, all with ten
    rungs. `trial_intermediate_values` has them too, as Optuna needs them.
    """
    record = register_study(
        db,
        spec,
        text=f"name: {spec.name}",
        path=None,
        root=None,
        versions={},
        facts={"examples": {"train": 100, "validation": 350}},
        artifacts=artifacts,
        now=time.time() - 2 * trials * SECONDS,
    )
    rows: dict[Table, list[Row]] = {}
    draws = random.Random(spec.seed)
    for number in range(trials):
        for table, row in _trial(record, number, draws):
            rows.setdefault(table, []).append(row)
    with db.transaction() as connection:
        for table, own in rows.items():
            connection.execute(insert(table), own)
        spent = {"issued": trials, "active_seconds": trials * SECONDS}
        connection.execute(
            update(tables.studies).where(tables.studies.c.id == record.id).values(spent)
        )
    return find_study(db, spec.name)


def _trial(record: StudyRecord, number: int, draws: random.Random) -> Iterator[tuple[Table, Row]]:
    """Yield the rows of one trial with their tables, those that others refer to first."""
    spec = record.spec
    params = _point(spec, draws)
    config = assemble(spec, params, number)
    complete = number % 3 == 0
    state = "COMPLETE" if complete else "PRUNED"
    top = draws.betavariate(8, 2) * (1.0 if complete else 0.8)
    curve = [top * (1 - 0.5 ** (rung + 1)) for rung in range(RUNGS)]
    begun = record.created.timestamp() + number * SECONDS
    started, ended = utc(begun), utc(begun + SECONDS)
    trial_id = number + 1
    yield (
        optuna_tables.trials,
        {
            **{"trial_id": trial_id, "number": number, "study_id": record.optuna_study_id},
            **{"state": state, "datetime_start": started, "datetime_complete": ended},
        },
    )
    yield (
        optuna_tables.trial_values,
        {"trial_id": trial_id, "objective": 0, "value": curve[-1], "value_type": "FINITE"},
    )
    for name, value in params.items():
        distribution = to_distribution(spec.space[name])
        yield (
            optuna_tables.trial_params,
            {
                **{"trial_id": trial_id, "param_name": name},
                "param_value": distribution.to_internal_repr(value),
                "distribution_json": distribution_to_json(distribution),
            },
        )
    attributes = {CONFIG: config.model_dump(mode="json"), SEED: config.seed}
    for key, content in {**attributes, REASON: "completed" if complete else "pruned"}.items():
        yield (
            optuna_tables.trial_user_attributes,
            {"trial_id": trial_id, "key": key, "value_json": json.dumps(content)},
        )
    yield (
        tables.trials,
        {
            **{"id": trial_id, "study_id": record.id, "ordinal": number, "number": number},
            **{"optuna_trial_id": trial_id, "state": "ended", "lease_token": str(number)},
            **{"attempts": 1, "told": True, "final_state": state, "value": curve[-1]},
            "reason": "completed" if complete else "pruned",
            **{"config_json": config.model_dump_json(), "params_json": json.dumps(params)},
            **{"fingerprint": config.fingerprint(), "seed": config.seed},
            **{"started_at": started, "ended_at": ended, "seconds": SECONDS},
            **{"last_progress": 100, "last_value": curve[-1], "best_progress": 100},
            **{"steps": 100, "horizon": 100, "samples_per_second": 500.0, "device": "cpu"},
            "metrics_json": json.dumps({"loss": 1 - curve[-1], "accuracy": curve[-1]}),
        },
    )
    for rung, value in enumerate(curve):
        yield from _rung(trial_id, 100 * (rung + 1) // RUNGS, value)


def _rung(trial_id: int, progress: int, value: float) -> Iterator[tuple[Table, Row]]:
    yield (
        optuna_tables.trial_intermediate_values,
        {
            **{"trial_id": trial_id, "step": progress},
            **{"intermediate_value": value, "intermediate_value_type": "FINITE"},
        },
    )
    yield (
        tables.evaluations,
        {
            **{"trial_id": trial_id, "progress": progress, "epoch": progress / 10},
            **{"step": progress, "train_loss": 1 - value, "validation_loss": 1.1 - value},
            "metrics_json": json.dumps({"loss": 1.1 - value, "accuracy": value}),
            **{"learning_rate": 1e-3, "gradient_norm": 1.0, "gradient_norm_max": 2.0},
            **{"update_ratio": 1e-3, "samples_per_second": 500.0, "memory": 2**29},
            "seconds": SECONDS * progress / 100,
        },
    )


def _point(spec: StudySpec, draws: random.Random) -> dict[str, Value]:
    """Return a random point; ranges evenly in their own scale (log or not is no matter here)."""
    point: dict[str, Value] = {}
    for name, parameter in spec.space.items():
        if parameter.values is not None:
            point[name] = draws.choice(parameter.values)
            continue
        low, high = parameter.bounds()
        drawn = low * (high / low) ** draws.random() if low > 0 else draws.uniform(low, high)
        point[name] = parameter.nearest(drawn)
    return point
