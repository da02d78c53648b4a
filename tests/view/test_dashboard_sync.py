from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna_dashboard import get_note, save_note

from sft_tune.store.dashboard_side import DashboardSide
from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import load_optuna_study
from sft_tune.view.dashboard_files import FILES, TrialFiles, file_id
from sft_tune.view.dashboard_sync import Sync, is_ours, sealed, shown
from tests.store.conftest import NOW
from tests.view.dashboards import searched_study
from tests.view.examples import pruned_row, running_row, trial_row


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(str(tmp_path / "x.db"), create=True)
    yield database
    database.dispose()


def attributes(db: Database, name: str = "digits-study") -> dict[str, Any]:
    study = load_optuna_study(db, name)
    return dict(study._storage.get_study_system_attrs(study._study_id))


def side(db: Database, name: str = "digits-study") -> DashboardSide:
    return DashboardSide(db, load_optuna_study(db, name)._study_id)


def test_every_ended_trial_gets_a_note_and_the_study_its_file(db: Database, tmp_path: Path) -> None:
    searched_study(db, tmp_path / "runs")
    assert Sync(db).once(NOW) == 1
    found = side(db)
    first, second, third = (found.note(found.trial_ids[n]) or "" for n in range(3))
    assert first.startswith("**completed**: accuracy 0.8621 at 80 % of its schedule\n")
    assert "sft-tune train /studies/digits-study.yaml --trial 0" in first
    assert second.startswith("**pruned**: accuracy 0.4100")
    assert r"evidence \*1\*" in second
    assert third.startswith("**crashed**\n")
    note = get_note(load_optuna_study(db, "digits-study"))
    assert "```yaml\nname: digits-study\n# a study file\n```" in note


def test_a_second_look_writes_nothing(db: Database, tmp_path: Path) -> None:
    searched_study(db, tmp_path / "runs")
    sync = Sync(db)
    sync.once(NOW)
    before = attributes(db)
    assert sync.once(NOW) == 0
    assert Sync(db).once(NOW) == 1  # of a dashboard that starts again: the same once more
    assert attributes(db) == before


def test_a_note_that_a_person_wrote_or_changed_stays(db: Database, tmp_path: Path) -> None:
    searched_study(db, tmp_path / "runs")
    study = load_optuna_study(db, "digits-study")
    save_note(study, "mine")
    Sync(db).once(NOW)
    assert get_note(study) == "mine"
    found = side(db)
    ours = found.note(found.trial_ids[0]) or ""
    handle: Any = type("Trial", (), {})()
    handle.storage, handle.study, handle._trial_id = study._storage, study, found.trial_ids[0]
    for theirs in (ours.replace("completed", "looks odd"), ""):
        save_note(handle, theirs)
        Sync(db).once(NOW)
        assert side(db).note(found.trial_ids[0]) == theirs


def test_a_note_of_ours_follows_the_trial(db: Database, tmp_path: Path) -> None:
    searched_study(db, tmp_path / "runs")
    Sync(db).once(NOW)
    with db.transaction() as connection:
        connection.exec_driver_sql("UPDATE sft_trials SET note = 'new evidence' WHERE number = 1")
    Sync(db).once(NOW)
    found = side(db)
    assert "new evidence" in (found.note(found.trial_ids[1]) or "")


@pytest.mark.parametrize("text", ["", "x", "a\n\n[//]: # (sft_tune 0123)"])
def test_a_seal_is_of_the_text_before_it(text: str) -> None:
    assert is_ours(sealed(text))
    assert is_ours(None)
    assert not is_ours(text)
    assert not is_ours(sealed(text) + "\nand more")
    assert not is_ours("more" + sealed(text))


def test_files_are_made_when_they_are_opened(db: Database, tmp_path: Path) -> None:
    searched_study(db, tmp_path / "runs")
    Sync(db).once(NOW)
    study_id = load_optuna_study(db, "digits-study")._study_id
    files = TrialFiles(db, tmp_path / "uploads")

    def read(number: int, kind: int) -> bytes:
        return files.open_reader(file_id(study_id, number, kind)).read()

    assert json.loads(read(0, 1))["training"]["learning_rate"] == 0.01
    assert read(0, 2) == b"log of trial 0\n"
    assert b"# Best checkpoint of trial 0 of digits-study" in read(0, 3)
    assert b"accuracy: 0.9000" in read(0, 3)
    # Trial 1 has no checkpoint, there is no trial 9, no kind 4 and no study 99.
    for artifact in (file_id(study_id, 1, 3), file_id(study_id, 9, 1), file_id(study_id, 0, 4)):
        assert files.open_reader(artifact).read() == b"this file is gone\n"
    assert files.open_reader(file_id(99, 0, 1)).read() == b"this file is gone\n"
    told = [json.loads(v) for k, v in attributes(db).items() if k.startswith("dashboard:artifacts")]
    names = [meta["filename"] for meta in told]
    assert sorted(names) == sorted(
        [f.name for f in FILES.values()] + 2 * [FILES[1].name, "log.txt"]
    )


def test_a_file_that_a_person_took_off_the_page_stays_off(db: Database, tmp_path: Path) -> None:
    searched_study(db, tmp_path / "runs")
    Sync(db).once(NOW)
    study = load_optuna_study(db, "digits-study")
    key = next(k for k in attributes(db) if k.startswith("dashboard:artifacts"))
    study._storage.set_study_system_attr(study._study_id, key, "null")  # as its page does
    Sync(db).once(NOW)
    assert attributes(db)[key] == "null"


def test_uploads_have_a_folder_of_their_own_and_cannot_leave_it(
    db: Database, tmp_path: Path
) -> None:
    import io

    files = TrialFiles(db, tmp_path / "uploads")
    name = "0f8fad5b-d9cb-469f-a165-70867728950e"
    files.write(name, io.BytesIO(b"mine"))
    with files.open_reader(name) as file:
        assert file.read() == b"mine"
    files.write("../escape", io.BytesIO(b"x"))
    assert [p.name for p in (tmp_path / "uploads").iterdir()] == [name]
    files.remove(name)
    files.remove(name)
    assert list((tmp_path / "uploads").iterdir()) == []


def test_plots_of_the_study_are_kept_once(db: Database, tmp_path: Path) -> None:
    searched_study(db, tmp_path / "runs")
    Sync(db).once(NOW)
    ids = {k.split(":")[2] for k in attributes(db) if k.startswith("dashboard:plot_data:")}
    assert ids == {"learning-curves", "cost-and-quality"}


def test_studies_of_other_programs_are_left_alone(db: Database) -> None:
    import optuna

    from sft_tune.store.optuna_storage import open_optuna_storage

    optuna.create_study(study_name="theirs", storage=open_optuna_storage(db))
    before = attributes(db, "theirs")
    assert Sync(db).once(NOW) == 0
    assert attributes(db, "theirs") == before


def test_of_very_many_trials_the_best_and_the_latest_get_notes() -> None:
    rows = [trial_row(n, float(n == 3)) for n in range(30)]
    rows += [pruned_row(30, value=float("nan")), running_row(31)]
    assert [r.number for r in shown(rows, True, most=4)] == [0, 3, 29, 30]
    assert [r.number for r in shown(rows, True)] == list(range(31))
