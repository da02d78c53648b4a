"""A worker that serves open studies: when it has been idle for long enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sft_tune.errors import DataError, SftTuneError, StorageError
from sft_tune.run.serve import OpenStudies
from sft_tune.run.study import submit_study
from sft_tune.spec.load import load_study
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
    assert f"not served from here {how}: {error}" in told
    db.dispose()
