from __future__ import annotations

import threading

import optuna
import pytest
from sqlalchemy import func, select

from sft_tune.errors import StudyExistsError, StudyNotFoundError
from sft_tune.store import attributes, claims, reads, studies
from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord
from sft_tune.store.tables import evaluations, finalists, trials
from tests.store.conftest import NOW, finish, make_spec, outcome, register, rung, start


def test_a_registered_study_is_found_as_it_was(db: Database) -> None:
    spec = make_spec("found", budget={"trials": 7, "hours": 2.5, "target": 0.99})
    record = register(db, spec)
    assert studies.find_study(db, "found") == record
    assert record.spec == spec
    assert record.spec_hash == studies.spec_hash(spec)
    assert (record.task, record.metric, record.direction) == (
        "image-classification",
        "accuracy",
        "maximize",
    )
    assert (record.max_trials, record.max_hours, record.target) == (7, 2.5, 0.99)
    assert (record.issued, record.active_seconds, record.ended) == (0, 0.0, None)
    assert (record.path, record.root, record.artifacts) == (
        "/data/study.yaml",
        "/data",
        "/runs/study",
    )
    assert record.text == "name: study  # as written, with Ümläuts and 語"
    assert record.versions == {"torch": "2.15"}
    assert record.facts == {"labels": ["a", "b"]}
    assert record.created.timestamp() == record.updated.timestamp() == NOW
    assert not record.optuna_gone


def test_the_budget_in_trials_is_the_grid_s_where_the_file_names_none(db: Database) -> None:
    grid = make_spec(
        "grid",
        budget={},
        sampler={"name": "grid"},
        space={"optimizer": ["adamw", "sgd"], "epochs": [1, 2, 3]},
    )
    assert register(db, grid).max_trials == 6
    assert register(db, make_spec("default", budget={})).max_trials == 30
    assert register(db, make_spec("hours", budget={"hours": 1})).max_trials is None


def test_registering_again_changes_nothing(db: Database, study: StudyRecord) -> None:
    claims.claim_new(db, study.id, owner="me", now=NOW, lease_seconds=9, limit=None)
    again = register(db, make_spec(training={"epochs": 9}), text="other", now=NOW + 99)
    assert again.text == study.text
    assert again.spec == study.spec
    assert again.issued == 1


def test_two_that_register_at_once_get_the_same_study(db: Database) -> None:
    records: list[StudyRecord] = []
    together = threading.Barrier(4)

    def go() -> None:
        together.wait(timeout=20)
        records.append(register(db))

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(records) == 4
    assert len({(record.id, record.optuna_study_id) for record in records}) == 1


def test_optuna_s_study_is_made_with_it(db: Database, study: StudyRecord) -> None:
    plain = optuna.load_study(study_name="study", storage=studies.open_optuna_storage(db))
    assert plain._study_id == study.optuna_study_id
    assert plain.direction.name == "MAXIMIZE"
    assert plain.metric_names == ["accuracy"]
    assert plain.user_attrs[attributes.STUDY]["task"] == "image-classification"
    assert plain.user_attrs[attributes.SPEC] == study.spec.model_dump(mode="json")


def test_an_optuna_study_of_that_name_is_not_taken_for_ours(db: Database) -> None:
    storage = studies.open_optuna_storage(db)
    optuna.create_study(study_name="study", storage=storage)
    with pytest.raises(StudyExistsError, match="'study' is in the database, and sft_tune did not"):
        register(db)
    with pytest.raises(StudyNotFoundError):
        studies.find_study(db, "study")


def test_registering_goes_on_where_a_killed_process_left_off(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(
            studies, "ensure_optuna_study", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        register(db)
    left = studies.find_study(db, "study")
    assert left.optuna_study_id is None
    assert not left.optuna_gone
    updated = studies.update_study(db, left.id, left.spec, text=left.text, now=NOW)
    assert updated.optuna_study_id is not None
    assert studies.find_study(db, "study") == updated
    assert reads.trial_rows(db, "study") == []


def test_a_larger_budget_lets_an_ended_study_go_on(db: Database, study: StudyRecord) -> None:
    studies.set_ended(db, study.id, "trials")
    same = studies.update_study(db, study.id, study.spec, text="same", now=NOW + 5)
    assert (same.ended, same.text, same.updated.timestamp()) == ("trials", "same", NOW + 5)
    larger = make_spec(budget={"trials": 60})
    record = studies.update_study(
        db, study.id, larger, text="larger", path="/new.yaml", versions={"torch": "3"}, now=NOW + 9
    )
    assert (record.ended, record.max_trials, record.text) == (None, 60, "larger")
    assert (record.path, record.versions, record.root) == ("/new.yaml", {"torch": "3"}, "/data")
    assert record.spec == larger
    assert studies.find_study(db, "study") == record
    assert record.created == study.created


def test_facts_and_ends_are_kept(db: Database, study: StudyRecord) -> None:
    studies.record_facts(db, study.id, {"parameters": 12, "loss": float("nan")})
    studies.set_ended(db, study.id, "target")
    found = studies.find_study(db, "study")
    assert found.facts == {"parameters": 12, "loss": "NaN"}
    assert found.ended == "target"
    studies.set_ended(db, study.id, None)
    assert studies.find_study(db, "study").ended is None


def test_a_name_that_is_not_there_is_answered_with_those_that_are(db: Database) -> None:
    with pytest.raises(StudyNotFoundError, match="none yet; `sft-tune start` adds one"):
        studies.find_study(db, "any")
    for name in ("cifar10", "imdb"):
        register(db, make_spec(name))
    with pytest.raises(StudyNotFoundError) as caught:
        studies.find_study(db, "cifar-10")
    assert str(caught.value) == (
        "no study named 'cifar-10' in the database; did you mean 'cifar10'? "
        "there are: cifar10, imdb"
    )
    for read in (reads.study_row, reads.trial_rows, reads.best_row, reads.evaluation_rows):
        with pytest.raises(StudyNotFoundError, match="there are: cifar10, imdb"):
            read(db, "Cifar10")


def test_a_deleted_study_leaves_nothing_and_others_stay(db: Database, study: StudyRecord) -> None:
    other = register(db, make_spec("other"))
    for one in (study, other):
        claim = start(db, one)
        claims.record_evaluation(db, claim, rung())
        with db.transaction() as connection:
            connection.execute(finalists.insert().values(trial_id=claim.id, seed=1))
        finish(db, one, claim, outcome())
    assert studies.delete_study(db, "study") == "/runs/study"
    with pytest.raises(StudyNotFoundError):
        studies.delete_study(db, "study")
    with db.reading() as connection:
        for table in (trials, evaluations, finalists):
            assert connection.execute(select(func.count()).select_from(table)).scalar() == 1
    assert [row.name for row in reads.list_studies(db)] == ["other"]
    assert optuna.get_all_study_names(studies.open_optuna_storage(db)) == ["other"]
    assert len(reads.trial_rows(db, "other")) == 1
    # The name is free again.
    assert register(db).issued == 0
    assert reads.trial_rows(db, "study") == []


def test_a_study_whose_optuna_side_was_deleted_can_be_deleted_but_not_continued(
    db: Database, study: StudyRecord
) -> None:
    finish(db, study, start(db, study), outcome())
    storage = studies.open_optuna_storage(db)
    optuna.delete_study(study_name="study", storage=storage)
    record = studies.find_study(db, "study")
    assert record.optuna_gone
    for attempt in (
        lambda: register(db),
        lambda: studies.update_study(db, record.id, record.spec, text="", now=NOW),
    ):
        with pytest.raises(StudyExistsError, match="sft-tune delete study"):
            attempt()
    assert studies.delete_study(db, "study") == "/runs/study"
    assert register(db).issued == 0


def test_names_that_differ_in_case_are_two_studies_or_refused(db: Database) -> None:
    register(db, make_spec("Study"))
    if db.backend == "mysql":
        with pytest.raises(StudyExistsError, match="'Study' is there.*choose another"):
            register(db, make_spec("study"))
    else:
        register(db, make_spec("study"))
        assert len(reads.list_studies(db)) == 2
