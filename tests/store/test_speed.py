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
from sft_tune.store import checkpoints, claims, control, optuna_tables, reads, tables
from sft_tune.store.database import Database
from sft_tune.store.newcomers import Newcomers
from sft_tune.store.records import StudyRecord
from sft_tune.store.values import utc
from tests.store.conftest import NOW, register

TRIALS = 2000
RUNGS = 10


def fill(db: Database, study: StudyRecord, trials: int = TRIALS) -> None:
    """Write finished trials straight into the tables: through Optuna it would take minutes."""
    config = assemble(study.spec, {"learning_rate": 0.01, "optimizer": "sgd"}, 0)
    numbers = range(trials)
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
            | {"attempts": 1, "told": True, "final_state": state, "fingerprint": f"{number}"}
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


def work_of(db: Database, read: Callable[[], Any]) -> int:
    """Return how many instructions of its machine SQLite needs for what `read` reads, in tens."""
    done = 0

    def count() -> int:
        nonlocal done
        done += 1
        return 0

    with db.reading() as connection:  # the only one of the pool, which the reader gets
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(count, 10)
    read()
    driver.set_progress_handler(None, 10)
    return done


def work_of_each(db: Database, study: StudyRecord) -> dict[str, int]:
    """Return the work of what a runner reads whenever a trial starts or ends."""
    ended = Newcomers.from_now(db, study.name)
    lease: dict[str, Any] = {"owner": "me", "now": NOW, "lease_seconds": 60.0}
    jobs: dict[str, Callable[[], Any]] = {
        "left": lambda: claims.claim_abandoned(db, study.id, is_dead=lambda owner: False, **lease),
        "equal": lambda: claims.find_duplicate(db, study.id, "no such"),
        "wishes": lambda: control.wishes(db, study.id, "me", NOW),
        "kept": lambda: checkpoints.kept_checkpoints(db, study.id),
        "ended": ended.look,
    }
    return {name: work_of(db, read) for name, read in jobs.items()}


def test_what_a_runner_reads_for_each_trial_does_not_grow_with_the_study(tmp_path: Path) -> None:
    work = []
    for trials in (100, TRIALS):
        db = Database.open(str(tmp_path / f"{trials}.db"), create=True)
        study = register(db)
        fill(db, study, trials)
        work.append(work_of_each(db, study))
        db.dispose()
    few, many = work
    assert min(few.values()) > 0
    assert many == {name: pytest.approx(done, abs=10) for name, done in few.items()}
