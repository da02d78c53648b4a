"""Reads cost a fixed number of statements, however many trials there are; their time is printed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert

from sft_tune.spec.config import assemble
from sft_tune.store import optuna_tables, reads, tables
from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord
from sft_tune.store.values import utc
from tests.store.conftest import NOW, register

TRIALS = 2000
RUNGS = 10


def fill(db: Database, study: StudyRecord) -> None:
    """Write finished trials straight into the tables: through Optuna it would take minutes."""
    config = assemble(study.spec, {"learning_rate": 0.01, "optimizer": "sgd"}, 0)
    numbers = range(TRIALS)
    optunas: list[dict[str, Any]] = []
    ours: list[dict[str, Any]] = []
    for number in numbers:
        complete = number % 3 == 0
        state = "COMPLETE" if complete else "PRUNED"
        optunas.append(
            {"trial_id": number, "number": number, "study_id": study.optuna_study_id}
            | {"state": state, "datetime_start": utc(NOW), "datetime_complete": utc(NOW)}
        )
        ours.append(
            {"id": number, "study_id": study.id, "ordinal": number, "number": number}
            | {"optuna_trial_id": number, "state": "ended", "lease_token": str(number)}
            | {"attempts": 1, "told": True, "final_state": state}
            | {"reason": "completed" if complete else "pruned", "value": number / TRIALS}
            | {"config_json": config.model_dump_json(), "params_json": '{"optimizer": "sgd"}'}
            | {"started_at": utc(NOW), "ended_at": utc(NOW), "metrics_json": '{"loss": 1.5}'}
        )
    values = [
        {"trial_value_id": number, "trial_id": number, "objective": 0}
        | {"value": number / TRIALS, "value_type": "FINITE"}
        for number in numbers
    ]
    rungs = [
        {"trial_id": number, "progress": progress, "metrics_json": '{"loss": 1.5}'}
        for number in numbers
        for progress in range(10, 10 + RUNGS)
    ]
    with db.transaction() as connection:
        connection.execute(insert(optuna_tables.trials), optunas)
        connection.execute(insert(optuna_tables.trial_values), values)
        connection.execute(insert(tables.trials), ours)
        connection.execute(insert(tables.evaluations), rungs)


@contextmanager
def counted(db: Database) -> Iterator[list[str]]:
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(db.engine, "before_cursor_execute", note)


def test_reads_take_few_statements_at_2000_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = Database.open(str(tmp_path / "large.db"), create=True)
    fill(db, register(db))
    lines = []
    jobs: list[tuple[str, Callable[[], Any], int]] = [
        ("best_row", lambda: reads.best_row(db, "study"), 7),
        ("trial_rows", lambda: reads.trial_rows(db, "study"), 5),
        ("list_studies", lambda: reads.list_studies(db), 9),
        ("evaluation_rows", lambda: reads.evaluation_rows(db, "study"), 4),
    ]
    results = {}
    for name, read, most in jobs:
        with counted(db) as statements:
            begun = time.process_time()
            results[name] = read()
            milliseconds = 1000 * (time.process_time() - begun)
        assert len(statements) <= most, statements
        lines.append(f"{name} {milliseconds:.0f} ms in {len(statements)} statements")
    assert results["best_row"].number == TRIALS // 3 * 3
    assert len(results["trial_rows"]) == results["list_studies"][0].trials == TRIALS
    assert len(results["evaluation_rows"]) == TRIALS * RUNGS
    with capsys.disabled():
        print(f"\n{TRIALS} trials x {RUNGS} rungs, SQLite, CPU time: " + ", ".join(lines))
    db.dispose()
