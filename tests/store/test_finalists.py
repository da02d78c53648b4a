"""Confirmation runs in each kind of database: asked for once, held by one, ended once."""

from __future__ import annotations

import pytest

from sft_tune.store import finalists
from sft_tune.store.claims import Claim, LeaseLostError
from sft_tune.store.database import Database
from sft_tune.store.finalist_rows import finalist_rows
from tests.store.conftest import LEASE, NOW, register, start

DONE = {
    "reason": "completed",
    "value": 0.75,
    "metrics": {"accuracy": 0.75, "loss": float("inf")},
    "test_metrics": {"accuracy": 0.5},
    "seconds": 2.5,
}


def claim(
    db: Database, study: int, ids: tuple[int, ...], owner: str = "me", now: float = NOW
) -> Claim | None:
    return finalists.claim_run(
        db, study, ids, owner=owner, now=now, lease_seconds=LEASE, is_dead=lambda who: who == "dead"
    )


def test_runs_are_asked_for_once_and_trained_seed_by_seed(db: Database) -> None:
    study = register(db)
    start(db, study), start(db, study)
    ids = finalists.ask(db, study.id, [1, 0], [11, 12])
    assert finalists.ask(db, study.id, [1, 0], [11, 12]) == ids and len(set(ids)) == 4
    rows = finalist_rows(db, study.name)
    assert [(r.number, r.seed) for r in rows] == [(1, 11), (0, 11), (1, 12), (0, 12)]
    assert {r.phase for r in rows} == {"waiting"}
    first = claim(db, study.id, ids)
    assert first is not None and first.number == 1 and first.config is not None
    assert first.config.seed == 11
    second = claim(db, study.id, ids, "other")
    assert second is not None and second.number == 0


def test_a_run_is_ended_once_with_what_it_found(db: Database) -> None:
    study = register(db)
    start(db, study)
    ids = finalists.ask(db, study.id, [0], [11])
    held = claim(db, study.id, ids)
    assert held is not None and claim(db, study.id, ids, "other") is None
    held = finalists.begin(db, held, device="cpu", host="here", now=NOW)
    finalists.reach(db, held, 50, 0.6)
    (row,) = finalist_rows(db, study.name)
    assert (row.phase, row.last_progress, row.last_value, row.attempts) == ("running", 50, 0.6, 1)
    finalists.end(db, held, DONE, now=NOW + 5)
    finalists.end(db, held, DONE, now=NOW + 6)  # as a retry of a commit that succeeded
    (row,) = finalist_rows(db, study.name)
    assert (row.phase, row.reason, row.value, row.seconds) == ("ended", "completed", 0.75, 2.5)
    assert row.metrics == DONE["metrics"] and row.test_metrics == {"accuracy": 0.5}
    assert claim(db, study.id, ids, now=NOW + 1e6) is None
    finalists.ask(db, study.id, [0], [11])
    assert finalist_rows(db, study.name) == [row]


@pytest.mark.parametrize(("owner", "later"), [("dead", 1.0), ("me", LEASE + 1)])
def test_what_a_lost_runner_held_is_taken_up_and_is_no_longer_its(
    db: Database, owner: str, later: float
) -> None:
    study = register(db)
    start(db, study)
    ids = finalists.ask(db, study.id, [0], [11])
    lost = claim(db, study.id, ids, owner)
    assert lost is not None
    lost = finalists.begin(db, lost, device="cpu", host="here", now=NOW)
    taken = claim(db, study.id, ids, "other", NOW + later)
    assert taken is not None and (taken.taken_from, taken.attempts) == (owner, 1)
    with pytest.raises(LeaseLostError):
        finalists.end(db, lost, DONE, now=NOW + later)
    with pytest.raises(LeaseLostError):
        finalists.reach(db, lost, 50, 0.5)


@pytest.mark.parametrize(
    ("reason", "again"), [("crashed", True), ("stopped", True), ("diverged", False)]
)
def test_only_what_may_go_better_is_tried_again(db: Database, reason: str, again: bool) -> None:
    study = register(db)
    start(db, study)
    ids = finalists.ask(db, study.id, [0], [11])
    held = claim(db, study.id, ids)
    assert held is not None
    finalists.end(db, held, {"reason": reason}, now=NOW)
    assert finalists.wishes(db, study.id, ids, "me", NOW).open == 0
    assert finalists.ask(db, study.id, [0], [11]) == ids
    assert finalists.wishes(db, study.id, ids, "me", NOW).open == int(again)
    assert (claim(db, study.id, ids) is not None) is again
