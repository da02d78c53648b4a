"""A worker that serves open studies: when it has been idle for long enough."""

from __future__ import annotations

import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_tune.errors import DataError, SftTuneError, StorageError
from sft_tune.run.engine import LocalEngine
from sft_tune.run.serve import OpenStudies, serve
from sft_tune.run.slots import find_slots
from sft_tune.run.study import submit_study
from sft_tune.spec.load import load_study
from sft_tune.store import reads
from sft_tune.store.database import Database


def test_idle_time_counts_from_the_end_of_the_last_trial(tmp_path: Path) -> None:
    now = [0.0]
    db = Database.open(f"sqlite:///{tmp_path}/t.db", create=True)
    roster = OpenStudies(db, lambda *_: None, idle_seconds=60.0, clock=lambda: now[0])
    roster.refresh(busy=False)
    assert roster.over() is None
    for second in range(0, 3600, 2):  # an hour of one trial, with every slot taken
        now[0] = float(second)
        roster.refresh(busy=True)
    now[0] += 59.0
    assert roster.over() is None
    now[0] += 1.0
    assert roster.over() == "idle"
    db.dispose()


@pytest.mark.parametrize(
    ("error", "again"),
    [(StorageError("the disk is full"), True), (DataError("no such folder"), False)],
)
def test_a_study_is_tried_again_when_what_failed_may_pass(
    study_file: Callable[..., Path], tmp_path: Path, error: SftTuneError, again: bool
) -> None:
    now, told = [0.0], list[str]()
    db = Database.open(f"sqlite:///{tmp_path}/t.db", create=True)
    submit_study(load_study(study_file()), db, check=False)
    roster = OpenStudies(
        db, lambda _, event: told.append(getattr(event, "text", "")), clock=lambda: now[0]
    )
    roster.refresh()
    (desk,) = roster.desks({})
    roster.broken(desk, error)
    now[0] = 59.0
    roster.refresh()
    assert roster.desks({}) == []
    now[0] = 60.0
    roster.refresh()
    assert [one.spec.name for one in roster.desks({})] == ["tiny"] * again
    how = "for a minute" if again else "any more"
    where = "" if again else " (SFT_TUNE_ROOT says where its files lie on this machine)"
    assert f"not served from here {how}: {error}{where}" in told
    db.dispose()


WEIGHTS = {"model": {"weights": "w.safetensors"}}
FOLDER = {
    "task": "text-classification",
    "data": {"source": "t.csv"},
    "model": {"name": "transformers:gone", "weights": "DEFAULT"},
    "training": {"learning_rate": 1e-4},
}
FUNCTION = {
    **{key: None for key in ("data", "model", "training")},
    "task": "python:mine.py:train",
    "space": {"x": [1, 2]},
    "objective": {"metric": "score", "direction": "maximize", "rungs": "auto"},
}


@pytest.mark.parametrize(
    ("study", "gone", "said"),
    [
        (WEIGHTS, "w.safetensors", "model.weights: no file"),
        (FOLDER, "gone", "model.name: no folder"),
        (FUNCTION, "mine.py", "importing"),
    ],
)
def test_no_trial_is_spent_where_the_model_or_the_function_is_missing(
    study_file: Callable[..., Path], tmp_path: Path, study: dict[str, Any], gone: str, said: str
) -> None:
    (tmp_path / "w.safetensors").touch()
    (tmp_path / "mine.py").touch()
    (tmp_path / "gone").mkdir()
    rows = [f"text {i},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["text,label", *rows]))
    db = Database.open(f"sqlite:///{tmp_path}/t.db", create=True)
    loaded = load_study(study_file(**study))
    submit_study(loaded, db, check=False)
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    told = list[str]()
    serve(
        db,
        LocalEngine(tmp_path / "workers"),
        find_slots(loaded.spec.resources),
        queue.SimpleQueue(),
        lambda _, event: told.append(getattr(event, "text", "")),
        idle_seconds=0,
    )
    how = "any more" if study is FUNCTION else "for a minute"  # a hub may answer again
    assert any(text.startswith(f"not served from here {how}") and said in text for text in told)
    assert [(row.state, row.reason) for row in reads.trial_rows(db, "tiny")] == [("RUNNING", None)]
    db.dispose()
