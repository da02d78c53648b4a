from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from sft_tune.store import claims, reads, studies
from sft_tune.store.database import Database
from sft_tune.store.reads import TrialRow
from sft_tune.store.records import StudyRecord
from sft_tune.store.standing import Tally, default_row, standing
from tests.store.conftest import LEASE, NOW, finish, make_spec, outcome, register, rung, start, take


def fill(db: Database, study: StudyRecord) -> None:
    """Six trials: complete, pruned, failed, complete (best), running, and ended but not told."""
    for number, (reason, value) in enumerate(
        [("completed", 0.7), ("pruned", 0.95), ("crashed", None), ("completed", 0.8)]
    ):
        claim = start(db, study, {"learning_rate": 10.0 ** -(number + 1), "optimizer": "sgd"})
        claims.record_evaluation(db, claim, rung(10, 0.3))
        claims.record_evaluation(db, claim, rung(20, 0.4))
        finish(db, study, claim, outcome(reason, value, note=f"note {number}"))
    start(db, study)
    claims.end(db, start(db, study), outcome("pruned", 0.2), now=NOW)


def states(rows: list[TrialRow]) -> list[str]:
    return [row.state for row in rows]


def test_a_trial_is_read_from_both_sides(db: Database, study: StudyRecord) -> None:
    fill(db, study)
    rows = reads.trial_rows(db, "study")
    assert [row.number for row in rows] == [0, 1, 2, 3, 4, 5]
    assert states(rows) == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE", "RUNNING", "PRUNED"]
    assert [row.phase for row in rows] == [*["ended"] * 4, "running", "ended"]
    assert [row.value for row in rows] == [0.7, 0.95, None, 0.8, None, 0.2]
    row = rows[3]
    assert (row.reason, row.note, row.attempts) == ("completed", "note 3", 1)
    assert row.params == {"learning_rate": 1e-4, "optimizer": "sgd"}
    assert row.config is not None
    assert row.config["training"]["learning_rate"] == 1e-4
    assert row.metrics == {"accuracy": 0.9, "loss": 0.3}
    assert (row.best_progress, row.last_progress, row.last_value) == (80, 20, 0.4)
    assert (row.seconds, row.host, row.device, row.duplicate_of) == (12.5, "here", "cpu", None)
    assert row.started == datetime.fromtimestamp(NOW + 1, UTC)
    assert row.ended == datetime.fromtimestamp(NOW + 20, UTC)
    assert [row.is_alive(NOW) for row in rows] == [False] * 4 + [True, False]
    assert not rows[4].is_alive(NOW + LEASE)
    assert reads.trial_rows(db, "study", 3) == [row]
    assert reads.trial_rows(db, "study", 99) == []


def test_a_ticket_is_no_trial_until_it_has_a_number(db: Database, study: StudyRecord) -> None:
    take(db, study)
    assert reads.trial_rows(db, "study") == []
    assert reads.study_row(db, "study").trials == 0
    assert reads.study_row(db, "study").issued == 1


def test_the_best_trial_completed(db: Database, study: StudyRecord) -> None:
    assert reads.best_row(db, "study") is None
    fill(db, study)
    best = reads.best_row(db, "study")
    assert best is not None
    assert (best.number, best.value) == (3, 0.8)
    finish(db, study, start(db, study), outcome(value=0.8))
    assert reads.best_row(db, "study") == best  # Of equals the earlier.
    claims.end(db, start(db, study), outcome(value=0.85), now=NOW)
    untold = reads.best_row(db, "study")
    assert untold is not None
    assert (untold.number, untold.state) == (7, "COMPLETE")


@pytest.mark.parametrize(
    ("direction", "values", "best"),
    [
        ("minimize", [0.5, 0.1, 0.1, math.inf], 1),
        ("maximize", [0.5, math.inf, 0.1], 1),
        ("minimize", [0.5, -math.inf, 0.1], 1),
        ("maximize", [-math.inf, -1e300], 1),
        ("minimize", [math.inf], 0),
    ],
)
def test_the_best_of_any_values_is_the_one_that_optuna_names(
    db: Database, direction: str, values: list[float], best: int
) -> None:
    study = register(db, make_spec(objective={"metric": "loss", "direction": direction}))
    for value in values:
        finish(db, study, start(db, study), outcome(value=value))
    row = reads.best_row(db, "study")
    plain = optuna.load_study(study_name="study", storage=studies.open_optuna_storage(db))
    assert row is not None
    assert (row.number, row.value) == (best, values[best])
    assert plain.best_trial.value == values[best]
    assert reads.study_row(db, "study").best == values[best]


def test_a_study_at_a_glance(db: Database, study: StudyRecord) -> None:
    fill(db, study)
    claims.add_active_time(db, study.id, NOW, at_most=30)
    claims.add_active_time(db, study.id, NOW + 5, at_most=30)
    register(db, make_spec("empty", budget={"trials": 3, "hours": 1, "target": 0.5}), now=NOW + 60)
    row, empty = reads.list_studies(db)
    assert reads.study_row(db, "study") == row
    assert (row.name, row.task, row.metric) == ("study", "image-classification", "accuracy")
    assert row.states == {"COMPLETE": 2, "PRUNED": 2, "FAIL": 1, "RUNNING": 1}
    assert (row.trials, row.issued, row.max_trials) == (6, 6, 50)
    assert (row.best, row.direction, row.active_seconds) == (0.8, "maximize", 5.0)
    assert row.is_running(NOW)
    assert not row.is_running(NOW + LEASE)
    assert row.created == datetime.fromtimestamp(NOW, UTC)
    assert row.managed
    assert (empty.states, empty.best, empty.trials) == ({}, None, 0)
    assert (empty.max_hours, empty.target, empty.ended) == (1.0, 0.5, None)
    assert not empty.is_running(NOW)


def test_a_study_whose_optuna_side_was_deleted_is_still_read(
    db: Database, study: StudyRecord
) -> None:
    fill(db, study)
    before = reads.trial_rows(db, "study")
    rungs = reads.evaluation_rows(db, "study")
    optuna.delete_study(study_name="study", storage=studies.open_optuna_storage(db))
    # On SQLite the next study gets the ids of the deleted one, its trials those of its trials.
    stranger = register(db, make_spec("stranger"))
    finish(db, stranger, start(db, stranger), outcome(value=0.123))

    assert reads.trial_rows(db, "study") == before
    assert reads.evaluation_rows(db, "study") == rungs
    best = reads.best_row(db, "study")
    assert best is not None
    assert best.number == 3
    row = reads.study_row(db, "study")
    assert row.states == {"COMPLETE": 2, "PRUNED": 2, "FAIL": 1, "RUNNING": 1}
    assert (row.best, row.optuna_study_id) == (0.8, None)
    assert [row.value for row in reads.trial_rows(db, "stranger")] == [0.123]


def post(application: Callable[..., Any], path: str, body: dict[str, Any]) -> str:
    """Send a POST request to a WSGI application and return the status that it answers."""
    content = json.dumps(body).encode()
    answers: list[str] = []
    environment = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": path,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(content)),
        "SERVER_NAME": "test",
        "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(content),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    }
    list(application(environment, lambda status, headers, *rest: answers.append(status)))
    return answers[0]


def test_a_study_that_the_dashboard_renamed_is_read_under_its_new_name(
    db: Database, study: StudyRecord
) -> None:
    from optuna_dashboard import wsgi

    fill(db, study)
    before = reads.trial_rows(db, "study")
    storage = studies.open_optuna_storage(db)
    path = f"/api/studies/{study.optuna_study_id}/rename"
    assert post(wsgi(storage), path, {"study_name": "renamed"}).startswith("201")

    old, new = reads.list_studies(db)
    assert (old.name, old.optuna_study_id, old.managed) == ("study", None, True)
    assert (new.name, new.managed, new.task) == ("renamed", False, "image-classification")
    assert (new.metric, new.direction, new.best) == ("accuracy", "maximize", 0.8)
    rows = reads.trial_rows(db, "renamed")
    assert states(rows)[:4] == states(before)[:4]
    for row, was in zip(rows[:4], before[:4], strict=True):
        assert (row.number, row.reason, row.config, row.metrics) == (
            was.number,
            was.reason,
            was.config,
            was.metrics,
        )
        assert (row.checkpoint, row.seconds, row.seed) == (was.checkpoint, was.seconds, was.seed)
        assert row.phase is None
    best = reads.best_row(db, "renamed")
    assert best is not None
    assert (best.number, best.value) == (3, 0.8)
    # What is left of the old name still holds the rungs.
    assert len(reads.evaluation_rows(db, "study")) == 8
    assert studies.delete_study(db, "renamed") is None
    assert [row.name for row in reads.list_studies(db)] == ["study"]


def test_a_study_of_optuna_alone_is_read(db: Database) -> None:
    def objective(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        trial.suggest_int("layers", 1, 3)
        trial.suggest_categorical("kind", ["a", None, 2])
        for step in range(3):
            trial.report(x + step, step)
        return x

    study = optuna.create_study(
        study_name="plain",
        storage=studies.open_optuna_storage(db),
        sampler=optuna.samplers.RandomSampler(seed=1),
    )
    study.optimize(objective, n_trials=3)
    study.enqueue_trial({"x": 0.5})
    rows = reads.trial_rows(db, "plain")
    assert states(rows) == ["COMPLETE", "COMPLETE", "COMPLETE", "WAITING"]
    for row, trial in zip(rows, study.trials, strict=True):
        assert row.params == trial.params
        assert [type(value) for value in row.params.values()] == [
            type(value) for value in trial.params.values()
        ]
        assert row.value == trial.values[0] if trial.values else row.value is None
        assert row.phase is row.config is row.reason is None
    assert (rows[0].last_progress, rows[0].last_value) == (2, study.trials[0].params["x"] + 2)
    best = reads.best_row(db, "plain")
    assert best is not None
    assert best.number == study.best_trial.number
    (glance,) = reads.list_studies(db)
    assert (glance.managed, glance.task, glance.direction) == (False, None, "minimize")
    assert glance.states == {"COMPLETE": 3, "WAITING": 1}
    assert glance.created is not None
    rungs = reads.evaluation_rows(db, "plain", 1)
    assert [(row.number, row.progress) for row in rungs] == [(1, 0), (1, 1), (1, 2)]
    assert rungs[2].metrics == {"value": study.trials[1].params["x"] + 2}


def test_trials_that_only_optuna_knows_stand_among_ours(db: Database, study: StudyRecord) -> None:
    finish(db, study, start(db, study), outcome())
    storage = studies.open_optuna_storage(db)
    plain = optuna.load_study(study_name="study", storage=storage)
    plain.enqueue_trial({"learning_rate": 0.02})
    storage.create_new_trial(study.optuna_study_id or 0)
    finish(db, study, start(db, study), outcome())
    rows = reads.trial_rows(db, "study")
    assert states(rows) == ["COMPLETE", "WAITING", "RUNNING", "COMPLETE"]
    assert [row.phase for row in rows] == ["ended", None, None, "ended"]
    assert reads.study_row(db, "study").states == {"COMPLETE": 2, "WAITING": 1, "RUNNING": 1}


def test_what_optuna_says_of_a_finished_trial_stands(db: Database, study: StudyRecord) -> None:
    """Someone told it by other means; our row waits to be told."""
    claim = start(db, study)
    storage = studies.open_optuna_storage(db)
    storage.set_trial_state_values(claim.optuna_trial_id or 0, TrialState.COMPLETE, [0.4])
    (row,) = reads.trial_rows(db, "study")
    assert (row.state, row.value, row.phase) == ("COMPLETE", 0.4, "running")
    claims.end(db, claim, outcome("crashed", None), now=NOW)
    (row,) = reads.trial_rows(db, "study")
    assert (row.state, row.value, row.reason) == ("COMPLETE", 0.4, "crashed")


def test_what_a_pruned_trial_reported_last_is_not_its_value(
    db: Database, study: StudyRecord
) -> None:
    """It may be of a part of validation; Optuna takes it for the value."""
    claim = start(db, study)
    storage = studies.open_optuna_storage(db)
    storage.set_trial_intermediate_value(claim.optuna_trial_id or 0, 10, 0.9)
    claims.end(db, claim, outcome("pruned", None), now=NOW)
    storage.set_trial_state_values(claim.optuna_trial_id or 0, TrialState.PRUNED, [0.9])
    (row,) = reads.trial_rows(db, "study")
    assert (row.state, row.value, row.reason) == ("PRUNED", None, "pruned")


def test_reading_loads_neither_optuna_nor_the_orm() -> None:
    code = (
        "import sys, sft_tune.store.reads, sft_tune.store.database\n"
        "sft_tune.store.database.Database.open('x.db', create=False)\n"
    )
    watch = (
        "import sys\n"
        f"try:\n    exec({code!r})\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "heavy = {'optuna', 'alembic', 'sqlalchemy.orm', 'pydantic', 'torch', 'filelock'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["StorageError"]


def test_a_study_is_counted_as_its_rows_say(db: Database, study: StudyRecord) -> None:
    assert default_row(db, "study") is None
    fill(db, study)
    counted = standing(db, "study")
    assert counted is not None
    assert sorted(counted.tallies, key=lambda t: (t.reason, t.progress or 0)) == [
        Tally("completed", 20, 2, 25.0, 8025.0, 25.0),
        Tally("crashed", 20, 1, 12.5, 4012.5, 12.5),
        Tally("pruned", None, 1, 12.5, 4012.5, 12.5),
        Tally("pruned", 20, 1, 12.5, 4012.5, 12.5),
    ]
    assert (counted.total, counted.ended) == (6, 5)
    rows = {row.number: row for row in reads.trial_rows(db, "study")}
    # The default configuration's, a failure, the best, the running one.
    assert counted.rows == [rows[0], rows[2], rows[3], rows[4]]
    assert default_row(db, "study") == rows[0]
