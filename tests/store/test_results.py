"""The view `sft_results`, asked as a person who writes SQL would."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from sft_tune.store import claims
from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord
from tests.store.conftest import NOW, finish, make_spec, outcome, register, start, take


def ask(db: Database, query: str) -> list[tuple[Any, ...]]:
    with db.reading() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def test_each_trial_is_one_flat_row_whose_numbers_are_numbers(
    db: Database, study: StudyRecord
) -> None:
    finish(db, study, start(db, study, {"learning_rate": 1e-5, "optimizer": "adamw"}), outcome())
    start(db, study)
    take(db, study)  # A ticket, not yet a trial.
    row = "SELECT study, number, state, reason, value, metric, learning_rate, epochs, optimizer"
    assert ask(db, f"{row} FROM sft_results ORDER BY number") == [
        ("study", 0, "COMPLETE", "completed", 0.9, "accuracy", 1e-5, 3, "adamw"),
        ("study", 1, "RUNNING", None, None, "accuracy", 0.01, 3, "sgd"),
    ]
    first = ask(db, "SELECT clip_norm, model_name, model_weights, model_dropout, seed, seconds, "
        "peak_memory, samples_per_second, best_progress, attempts, host, device FROM sft_results "
        "WHERE number = 0")[0]  # fmt: skip
    assert first[:4] == (1.0, "builtin:convnet", "none", None)
    assert first[4] > 0
    assert first[5:] == (12.5, 5_000_000_000, 321.0, 80, 1, "here", "cpu")


def test_settings_sort_and_average_as_numbers(db: Database, study: StudyRecord) -> None:
    for rate in (0.1, 0.02, 1e-5):
        params = {"learning_rate": rate, "optimizer": "sgd"}
        finish(db, study, start(db, study, params), outcome(value=rate))
    rates = ask(db, "SELECT learning_rate FROM sft_results ORDER BY learning_rate")
    assert [rate for (rate,) in rates] == [1e-5, 0.02, 0.1]
    ((mean, batch),) = ask(db, "SELECT AVG(learning_rate), AVG(batch_size) FROM sft_results")
    assert abs(mean - 0.12001 / 3) < 1e-12
    assert float(batch) == 32.0
    query = (
        "SELECT optimizer, COUNT(*), MAX(value) FROM sft_results WHERE learning_rate > 1e-3 "
        "AND frozen = 'none' AND float_type = 'auto' GROUP BY optimizer"
    )
    assert ask(db, query) == [("sgd", 2, 0.1)]


def test_a_setting_that_is_null_is_null(db: Database) -> None:
    spec = make_spec(training={"clip_norm": None})
    study = register(db, spec)
    start(db, study)
    assert ask(db, "SELECT number FROM sft_results WHERE clip_norm IS NULL") == [(0,)]


def test_ends_are_told_by_state_and_reason(db: Database, study: StudyRecord) -> None:
    for reason, value in (("pruned", 0.4), ("crashed", None), ("diverged", None)):
        claims.end(db, start(db, study), outcome(reason, value), now=NOW)
    query = "SELECT state, reason, ended - started IS NOT NULL FROM sft_results ORDER BY number"
    assert [(state, reason) for state, reason, _ in ask(db, query)] == [
        ("PRUNED", "pruned"),
        ("FAIL", "crashed"),
        ("PRUNED", "diverged"),
    ]
