"""A worker that serves open studies: when it has been idle for long enough."""

from __future__ import annotations

from pathlib import Path

from sft_tune.run.serve import OpenStudies
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
