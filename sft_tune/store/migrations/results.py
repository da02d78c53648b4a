"""The view `sft_results`: one flat row a trial, with a column for each setting."""

from __future__ import annotations

from collections.abc import Sequence

Settings = Sequence[tuple[str, str]]
"""Names of settings and their kinds: int, float, bool or text."""

# Words that PostgreSQL (freeze) or MySQL (precision) would want quoted in every query.
_LABELS = {"freeze": "frozen", "precision": "float_type"}

_TYPES = {"int": "integer", "float": "double precision", "bool": "boolean", "text": "text"}


def results_view(backend: str, training: Settings, model: Settings) -> str:
    """Return the statement that makes `sft_results`.

    It reads our tables only: a view on Optuna's would keep Optuna from changing its own.

    Args:
        backend: SQLAlchemy's name of the kind of database.
        training: of the section `training`.
        model: of the section `model`, whose columns begin with ``model_``.
    """
    columns = [
        "s.name AS study",
        "t.number AS number",
        "COALESCE(t.final_state, 'RUNNING') AS state",
        "t.reason AS reason",
        "t.value AS value",
        "s.metric AS metric",
        *(
            f"{_extract(backend, 'training', name, kind)} AS {_LABELS.get(name, name)}"
            for name, kind in training
        ),
        *(f"{_extract(backend, 'model', name, kind)} AS model_{name}" for name, kind in model),
        *(
            f"t.{name} AS {name}"
            for name in ("seed", "best_progress", "seconds", "peak_memory", "samples_per_second")
        ),
        *(f"t.{name} AS {name}" for name in ("attempts", "host", "device", "checkpoint")),
        "t.duplicate_of AS duplicate_of",
        "t.started_at AS started",
        "t.ended_at AS ended",
    ]
    source = _source(backend, training, model)
    return (
        f"CREATE VIEW sft_results AS SELECT {', '.join(columns)} FROM {source} "
        "JOIN sft_studies s ON s.id = t.study_id WHERE t.number IS NOT NULL"
    )


def _source(backend: str, training: Settings, model: Settings) -> str:
    if backend != "postgresql":
        return "sft_trials t"
    joins = ["sft_trials t"]
    # One parse a section instead of one a column.
    for section, settings in (("training", training), ("model", model)):
        named = ", ".join(f'"{name}" {_TYPES[kind]}' for name, kind in settings)
        joins.append(
            f"LEFT JOIN LATERAL json_to_record(t.config_json::json -> '{section}') "
            f"AS {section}({named}) ON TRUE"
        )
    return " ".join(joins)


def _extract(backend: str, section: str, name: str, kind: str) -> str:
    if backend == "postgresql":
        return f'{section}."{name}"'
    path = f"'$.{section}.{name}'"
    if backend == "sqlite":
        return f"json_extract(t.config_json, {path})"
    value = f"JSON_VALUE(t.config_json, {path})"
    if kind == "bool":
        return f"({value} IN ('true', '1'))"  # MySQL says true, MariaDB 1
    types = {"int": "SIGNED", "float": "DOUBLE"}
    return f"CAST({value} AS {types[kind]})" if kind in types else value
