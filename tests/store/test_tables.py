"""What the code says of the tables, against the tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Double, Integer, MetaData, Table, inspect

from sft_tune.spec.model import ModelSpec
from sft_tune.spec.training import TrainingSpec
from sft_tune.store import migrations, optuna_tables, tables
from sft_tune.store.database import Database
from sft_tune.store.schema import state

NAMES = sorted(tables.metadata.tables)


def kind_of(table: Table, name: str) -> str:
    kind = table.c[name].type
    if isinstance(kind, Integer):
        return "integer"
    return "double" if isinstance(kind, Double) else "other"


@pytest.mark.parametrize("name", NAMES)
def test_the_tables_are_as_the_code_describes_them(db: Database, name: str) -> None:
    described = tables.metadata.tables[name]
    columns = {column["name"]: column for column in inspect(db.engine).get_columns(name)}
    assert list(columns) == [column.name for column in described.c]
    for column in described.c:
        assert columns[column.name]["nullable"] == bool(column.nullable), column
        if kind_of(described, column.name) == "double":
            assert "DOUBLE" in str(columns[column.name]["type"]), column
        if kind_of(described, column.name) == "integer":
            assert "INT" in str(columns[column.name]["type"]), column
    foreign = {key["constrained_columns"][0] for key in inspect(db.engine).get_foreign_keys(name)}
    assert foreign == {column.name for column in described.c if column.foreign_keys}


def test_texts_and_times_are_whole_on_mysql(db: Database) -> None:
    if db.backend != "mysql":
        return
    for name in NAMES:
        for column in inspect(db.engine).get_columns(name):
            kind = str(column["type"])
            assert kind != "TEXT", column
            assert not kind.startswith("DATETIME") or column["type"].fsp == 6, column
        options = inspect(db.engine).get_table_options(name)
        assert options["mysql_engine"] == "InnoDB"
        assert options["mysql_default charset"] == "utf8mb4"


@pytest.mark.parametrize("name", sorted(optuna_tables.metadata.tables))
def test_optuna_s_tables_are_as_we_read_them(db: Database, name: str) -> None:
    described = optuna_tables.metadata.tables[name]
    there = {column["name"]: column for column in inspect(db.engine).get_columns(name)}
    assert {column.name for column in described.c} <= set(there)
    reflected = Table(name, MetaData(), autoload_with=db.engine)
    for column in described.c:
        values = getattr(column.type, "enums", None)
        found = getattr(reflected.c[column.name].type, "enums", None)
        assert values is None or found is None or sorted(values) == sorted(found)


def test_optuna_s_states_are_those_that_we_know() -> None:
    from optuna.storages._rdb.models import TrialIntermediateValueModel, TrialValueModel
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    def known(table: Table, column: str) -> set[str]:
        return set(table.c[column].type.enums)  # type: ignore[attr-defined]

    assert {s.name for s in TrialState} == set(optuna_tables.STATES)
    assert {s.name for s in TrialState if s.is_finished()} == set(optuna_tables.FINISHED)
    assert {d.name for d in StudyDirection} == known(optuna_tables.study_directions, "direction")
    assert {k.name for k in TrialValueModel.TrialValueType} == known(
        optuna_tables.trial_values, "value_type"
    )
    assert {k.name for k in TrialIntermediateValueModel.TrialIntermediateValueType} == known(
        optuna_tables.trial_intermediate_values, "intermediate_value_type"
    )


def test_the_revisions_that_the_code_knows_are_those_there_are(db: Database) -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    found = [revision.revision for revision in script.walk_revisions()]
    assert tuple(reversed(found)) == migrations.REVISIONS
    with db.reading() as connection:
        assert state(connection) == "current"


def test_a_database_made_before_its_indexes_gets_them(empty_url: str) -> None:
    """Also where an upgrade was killed half way, which leaves some of them on MySQL."""
    indexes = {f"ix_sft_trials_{name}" for name in ("number", "unended", "checkpoint")}
    Database.open(empty_url, create=True).dispose()
    for dropped in (indexes, {"ix_sft_trials_unended"}):
        older = Database.open(empty_url, create=False)
        with older.transaction() as connection:
            for name in dropped:
                on = " ON sft_trials" if older.backend == "mysql" else ""
                connection.exec_driver_sql(f"DROP INDEX {name}{on}")
            connection.exec_driver_sql("UPDATE sft_alembic_version SET version_num = '0006'")
        older.dispose()
        Database.open(empty_url, create=False).dispose()  # can be looked at as it is
        upgraded = Database.open(empty_url, create=True)
        found = {index["name"] for index in inspect(upgraded.engine).get_indexes("sft_trials")}
        upgraded.dispose()
        assert indexes <= found


def test_the_results_have_a_column_for_every_setting(db: Database) -> None:
    """A new setting needs a migration that makes the view again."""
    columns = [column["name"] for column in inspect(db.engine).get_columns("sft_results")]
    settings = [
        {"freeze": "frozen", "precision": "float_type"}.get(n, n) for n in TrainingSpec.model_fields
    ]
    model = [f"model_{name}" for name in ModelSpec.model_fields]
    assert [name for name in settings + model if name not in columns] == []
    expected = ["study", "number", "state", "reason", "value", "metric"]
    assert columns[: len(expected)] == expected
    for name in ("seconds", "peak_memory", "attempts", "checkpoint", "started", "ended"):
        assert name in columns
