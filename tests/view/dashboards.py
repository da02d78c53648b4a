"""A study in a database as a search leaves it, for what the dashboard shows."""

from __future__ import annotations

from pathlib import Path

from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord
from tests.store.conftest import finish, make_spec, outcome, register, rung, start


def searched_study(db: Database, folder: Path, name: str = "digits-study") -> StudyRecord:
    """Register a study with one completed, one pruned and one crashed trial, logs included."""
    from sft_tune.store import claims

    study = register(
        db,
        make_spec(name),
        text=f"name: {name}\n# a study file",
        path=f"/studies/{name}.yaml",
        artifacts=str(folder),
    )
    for number, (reason, value) in enumerate(
        (("completed", 0.8621), ("pruned", 0.41), ("crashed", None))
    ):
        claim = start(db, study, {"learning_rate": 0.01 * (number + 1), "optimizer": "sgd"})
        for progress, accuracy in ((10, 0.3), (50, 0.5)):
            claims.record_evaluation(db, claim, rung(progress, accuracy))
        place = folder / f"trial-{number:05d}"
        place.mkdir(parents=True)
        (place / "log.txt").write_text(f"log of trial {number}\n")
        note = "" if reason == "completed" else f"evidence *{number}*"
        path = str(place / "best.safetensors") if reason == "completed" else None
        finish(db, study, claim, outcome(reason, value, note=note, checkpoint=path))
    return study
