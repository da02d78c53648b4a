from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select

from sft_tune.errors import StudyNotFoundError
from sft_tune.store import claims, control, studies
from sft_tune.store.claims import AlreadyLinkedError, Claim, LeaseLostError
from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord
from sft_tune.store.tables import trials
from tests.store.conftest import (
    LEASE,
    NOW,
    begin,
    finish,
    make_spec,
    outcome,
    register,
    rung,
    start,
    take,
    take_abandoned,
)

DRAIN = """
import sys
from sft_tune.store.claims import claim_new
from sft_tune.store.database import Database
url, study_id, owner = sys.argv[1], int(sys.argv[2]), sys.argv[3]
db = Database.open(url, create=False)
sys.stdin.readline()
while claim := claim_new(db, study_id, owner=owner, now=0.0, lease_seconds=60, limit=30):
    print(claim.ordinal)
db.dispose()
"""


def in_threads(count: int, work: Callable[[int], None]) -> None:
    errors: list[BaseException] = []
    together = threading.Barrier(count)

    def run(index: int) -> None:
        try:
            together.wait(timeout=30)
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert errors == []


def test_eight_threads_share_fifty_tickets_without_gap_or_repeat(
    db: Database, study: StudyRecord
) -> None:
    taken: list[Claim] = []

    def drain(index: int) -> None:
        while claim := claims.claim_new(
            db, study.id, owner=f"runner {index}", now=NOW, lease_seconds=LEASE, limit=50
        ):
            taken.append(claim)

    in_threads(8, drain)
    assert sorted(claim.ordinal for claim in taken) == list(range(50))
    assert len({claim.token for claim in taken}) == 50
    assert studies.find_study(db, study.name).issued == 50


def test_processes_share_the_tickets_too(db: Database, study: StudyRecord) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", DRAIN, db.url, str(study.id), f"p{index}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ordinals: list[int] = []
    for process in processes:
        said, complained = process.communicate(timeout=120)
        assert complained == ""
        ordinals += [int(line) for line in said.split()]
    assert sorted(ordinals) == list(range(30))


def test_a_larger_budget_issues_more_and_none_means_no_limit(
    db: Database, study: StudyRecord
) -> None:
    def ordinal(limit: int | None) -> int | None:
        claim = claims.claim_new(
            db, study.id, owner="me", now=NOW, lease_seconds=LEASE, limit=limit
        )
        return None if claim is None else claim.ordinal

    assert [ordinal(limit) for limit in (2, 2, 2, 3, 3, None)] == [0, 1, None, 2, None, 3]
    assert studies.find_study(db, study.name).issued == 4


def test_for_what_was_asked_for_alone_there_is_a_ticket_each_and_no_more(
    db: Database, study: StudyRecord
) -> None:
    take(db, study)
    control.enqueue(db, study.id, [{"learning_rate": 1e-3}, {"learning_rate": 2e-3}], now=NOW)
    taken: list[Claim] = []

    def drain(index: int) -> None:
        while claim := claims.claim_new(
            *(db, study.id),
            owner=f"runner {index}",
            now=NOW,
            lease_seconds=LEASE,
            limit=50,
            asked_only=True,
        ):
            taken.append(claim)

    in_threads(8, drain)
    assert sorted(claim.ordinal for claim in taken) == [1, 2]
    assert studies.find_study(db, study.name).issued == 3


def test_a_ticket_of_a_deleted_study_is_an_error(db: Database, study: StudyRecord) -> None:
    studies.delete_study(db, study.name)
    with pytest.raises(StudyNotFoundError, match="deleted"):
        take(db, study)


def test_a_claim_whose_answer_was_lost_is_not_taken_twice(
    db: Database, study: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit succeeds, then the connection dies: the write is done again."""
    whole_write = db.write

    def twice(operation: Any, **options: Any) -> Any:
        whole_write(operation, **options)
        return whole_write(operation, **options)

    monkeypatch.setattr(db, "write", twice)
    first = take(db, study)
    assert first.ordinal == 0
    assert studies.find_study(db, study.name).issued == 1
    monkeypatch.undo()
    claims.release(db, first)
    monkeypatch.setattr(db, "write", twice)
    again = take_abandoned(db, study)
    assert again is not None
    linked = claims.link(db, again, 77, 0)
    begun = begin(db, study, linked)
    claims.record_evaluation(db, begun, rung())
    claims.add_error(db, begun, "it broke")
    claims.end(db, begun, outcome(), now=NOW)
    (ended,) = claims.untold(db, study.id)
    assert (ended.attempts, ended.error, ended.last_progress) == (1, "attempt 1: it broke", 10)


def test_a_claim_grows_into_a_trial(db: Database, study: StudyRecord) -> None:
    claim = take(db, study)
    assert (claim.number, claim.config, claim.params, claim.attempts) == (None, None, None, 0)
    assert claim.metric == "accuracy"
    linked = claims.link(db, claim, 123, 7)
    begun = begin(db, study, linked, {"learning_rate": 0.1, "optimizer": "adamw"})
    assert begun.config is not None
    assert begun.config.training.learning_rate == 0.1
    claims.release(db, begun)
    again = take_abandoned(db, study)
    assert again is not None
    assert replace(again, owner="me", token=begun.token, begun=True, attempts=1, stuck=1) == begun


def test_an_attempt_that_got_further_begins_the_count_anew(
    db: Database, study: StudyRecord
) -> None:
    claim = claims.link(db, take(db, study), 123, 7)
    stuck = []
    for progress in (None, 20, 20, 20, 60):
        claim = begin(db, study, claim, {"learning_rate": 0.1, "optimizer": "adamw"})
        stuck.append(claim.stuck)
        if progress is not None:
            claims.record_evaluation(db, claim, rung(progress))
        assert claims.has_advanced(db, claim) == (progress not in (None, 20) or len(stuck) == 2)
    assert (stuck, claim.attempts) == ([1, 2, 1, 2, 3], 5)


def test_only_trials_that_nobody_runs_are_taken_over(db: Database, study: StudyRecord) -> None:
    live = take(db, study, "live")
    dead = take(db, study, "dead")
    expired = take(db, study, "expired", now=NOW - 2 * LEASE)
    released = start(db, study, owner="tidy")
    claims.release(db, released)
    ended = start(db, study, owner="done")
    claims.end(db, ended, outcome(), now=NOW)

    found = []
    while claim := take_abandoned(db, study, dead=("dead",)):
        found.append(claim.ordinal)
    assert found == [dead.ordinal, expired.ordinal, released.ordinal]
    assert claims.live_owners(db, study.id, NOW) == {"live", "other"}
    assert claims.renew(db, "live", NOW + 1, LEASE) == {live.id}
    assert claims.live_owners(db, study.id, NOW + LEASE) == {"live"}
    assert claims.live_owners(db, study.id, NOW + LEASE + 1) == set()


def test_one_of_many_runners_takes_each_abandoned_trial(db: Database, study: StudyRecord) -> None:
    for _ in range(6):
        take(db, study, "dead")
    taken: list[int] = []

    def take_all(index: int) -> None:
        while claim := take_abandoned(db, study, f"runner {index}", dead=("dead",)):
            taken.append(claim.ordinal)

    in_threads(4, take_all)
    assert sorted(taken) == list(range(6))


def test_a_runner_that_lost_its_lease_changes_nothing(db: Database, study: StudyRecord) -> None:
    lost = start(db, study, owner="slow")
    taken = take_abandoned(db, study, "fast", now=NOW + LEASE + 1)
    assert taken is not None
    assert taken.attempts == 1
    writes: list[Callable[[], object]] = [
        lambda: claims.link(db, lost, 999, 999),
        lambda: begin(db, study, lost),
        lambda: claims.record_evaluation(db, lost, rung()),
        lambda: claims.add_error(db, lost, "late"),
        lambda: claims.end(db, lost, outcome("crashed", None), now=NOW),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError, match="trial 0: slow no longer holds its lease"):
            write()
    assert claims.release(db, lost) is False
    assert claims.renew(db, "slow", NOW, LEASE) == set()
    claims.end(db, taken, outcome(value=0.75), now=NOW)
    (ended,) = claims.untold(db, study.id)
    assert (ended.value, ended.error, ended.last_progress) == (0.75, None, None)


def test_an_own_expired_lease_counts_as_lost_once_taken_again(
    db: Database, study: StudyRecord
) -> None:
    """One process, two threads: the earlier one must not write under the later one's lease."""
    first = take(db, study, "me")
    second = take_abandoned(db, study, "me", now=NOW + LEASE)
    assert second is not None
    with pytest.raises(LeaseLostError):
        claims.add_error(db, first, "late")
    claims.add_error(db, second, "in time")


def test_writes_after_the_own_release_are_void(db: Database, study: StudyRecord) -> None:
    claim = start(db, study)
    assert claims.release(db, claim) is True
    assert claims.release(db, claim) is False
    with pytest.raises(LeaseLostError):
        claims.record_evaluation(db, claim, rung())


def test_a_lease_that_was_renewed_in_time_is_not_taken(db: Database, study: StudyRecord) -> None:
    claim = take(db, study, "me")
    assert claims.renew(db, "me", NOW + LEASE - 1, LEASE) == {claim.id}
    assert take_abandoned(db, study, now=NOW + LEASE + 1) is None
    assert take_abandoned(db, study, now=NOW + 2 * LEASE) is not None


def test_a_lease_renewed_between_look_and_grasp_is_not_taken(
    db: Database, study: StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = take(db, study, "slow")
    whole_write = db.write

    def renew_first(operation: Any, **options: Any) -> Any:
        monkeypatch.setattr(db, "write", whole_write)
        claims.renew(db, "slow", NOW + LEASE + 1, LEASE)
        return whole_write(operation, **options)

    monkeypatch.setattr(db, "write", renew_first)
    assert take_abandoned(db, study, "fast", now=NOW + LEASE + 1) is None
    claims.add_error(db, claim, "still ours")


def test_attempts_count_those_that_did_not_end_in_order(db: Database, study: StudyRecord) -> None:
    begun = start(db, study, owner="first")
    assert begun.attempts == 1
    claims.release(db, begun)
    resumed = take_abandoned(db, study, "second")
    assert resumed is not None
    assert begin(db, study, resumed).attempts == 1
    after_crash = take_abandoned(db, study, "third", now=NOW + 2 * LEASE)
    assert after_crash is not None
    again = begin(db, study, after_crash)
    assert again.attempts == 2
    claims.release(db, replace(after_crash, begun=False))
    untouched = take_abandoned(db, study, "fourth")
    assert untouched is not None
    assert untouched.attempts == 1


def test_a_trial_of_optuna_belongs_to_one_ticket(db: Database, study: StudyRecord) -> None:
    first, second = take(db, study), take(db, study)
    claims.link(db, first, 5, 5)
    assert claims.link(db, first, 5, 5).number == 5
    with pytest.raises(AlreadyLinkedError, match="trial 5 already belongs"):
        claims.link(db, second, 5, 5)
    other = register(db, make_spec("other"))
    claims.link(db, take(db, other), 5, 5)


def test_the_start_of_the_first_attempt_stays(db: Database, study: StudyRecord) -> None:
    claim = begin(db, study, take(db, study))
    with db.reading() as connection:
        first = connection.execute(select(trials.c.started_at)).scalar()
    assert claim.config is not None
    claims.begin(db, claim, config=claim.config, params={}, device="1", host="there", now=NOW + 99)
    with db.reading() as connection:
        row = connection.execute(select(trials.c.started_at, trials.c.host)).one()
    assert tuple(row) == (first, "there")


def test_time_counts_once_however_many_runners_count_it(db: Database, study: StudyRecord) -> None:
    def count(now: float) -> float:
        return claims.add_active_time(db, study.id, NOW + now, at_most=30)

    assert count(0) == 0.0
    assert [count(now) for now in (10, 10, 12, 11, 12)] == [10, 10, 12, 12, 12]
    assert count(1000) == 42  # Nobody ran in between, but for 30 seconds at most.
    assert count(995) == 42  # Another runner's clock, behind.
    assert count(1001) == 43
    assert count(100) == 43  # The clock was set back by 15 minutes.
    assert count(101) == 44
    assert studies.find_study(db, study.name).active_seconds == 44


def test_time_counts_once_in_threads(db: Database, study: StudyRecord) -> None:
    claims.add_active_time(db, study.id, NOW, at_most=30)

    def count(index: int) -> None:
        for tick in range(1, 11):
            claims.add_active_time(db, study.id, NOW + tick, at_most=30)

    in_threads(4, count)
    assert studies.find_study(db, study.name).active_seconds == 10


def test_every_row_of_a_finished_study_is_told_and_free(db: Database, study: StudyRecord) -> None:
    for _ in range(2):
        finish(db, study, start(db, study), outcome())
    with db.reading() as connection:
        free = connection.execute(
            select(func.count()).where(trials.c.lease_owner.is_(None), trials.c.told)
        ).scalar()
    assert free == 2
    assert claims.untold(db, study.id) == []
    assert take_abandoned(db, study, now=NOW + 10 * LEASE) is None
