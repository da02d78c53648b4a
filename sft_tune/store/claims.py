"""Who runs what: the tickets of a study's budget, and the leases on trials that run.

A ticket is a row of `sft_trials`; it is issued by counting `sft_studies.issued` up, so the
budget is exact with any number of runners. A ticket becomes a trial with `link` and `begin`.
What may be done with a claim is all here: its lease is in `leases`, how a lost one is taken over in
`takeover`, its end in `outcomes`.

No clock in here: ``now`` is in seconds since 1970, the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, and_, case, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from sft_tune.errors import StudyNotFoundError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.space import Value
from sft_tune.store.database import Database
from sft_tune.store.leases import (
    AlreadyLinkedError,
    Claim,
    LeaseLostError,
    claim_with,
    live_owners,
    release,
    renew,
    write_if_ours,
)
from sft_tune.store.outcomes import (
    EndedTrial,
    add_error,
    end,
    find_duplicate,
    mark_told,
    record_evaluation,
    record_evaluations,
    untold,
)
from sft_tune.store.tables import CLAIMED, RUNNING, queue, studies, trials, unended
from sft_tune.store.takeover import take_first
from sft_tune.store.values import dumps, utc

__all__ = [
    "AlreadyLinkedError",
    "Claim",
    "EndedTrial",
    "LeaseLostError",
    "add_active_time",
    "add_error",
    "begin",
    "claim_abandoned",
    "claim_new",
    "end",
    "find_duplicate",
    "has_advanced",
    "link",
    "live_owners",
    "mark_told",
    "record_evaluation",
    "record_evaluations",
    "release",
    "renew",
    "untold",
]


def claim_new(
    db: Database,
    study_id: int,
    *,
    owner: str,
    now: float,
    lease_seconds: float,
    limit: int | None,
    asked_only: bool = False,
) -> Claim | None:
    """Take the next ticket of the study's budget; None when all ``limit`` are issued.

    The ticket gets what `control.enqueue` asked for first, where anything waits; with
    ``asked_only`` there is none for anything else. None too while the study is paused or stopped.

    Raises:
        StudyNotFoundError: the study was deleted.
    """
    token = uuid4().hex
    waiting = (
        select(queue.c.id)
        .where(queue.c.study_id == study_id, queue.c.ordinal.is_(None))
        .order_by(queue.c.id)
        .limit(1)
    )

    def take(connection: Connection) -> Claim | None:
        earlier = claim_with(connection, token)
        if earlier is not None:
            return earlier  # The commit of an earlier try succeeded, its answer was lost.
        if asked_only and connection.execute(waiting).scalar() is None:
            return None
        budget_left: list[ColumnElement[bool]] = [studies.c.wanted.is_(None)]
        if limit is not None:
            budget_left.append(studies.c.issued < limit + studies.c.extra_trials)
        counted = connection.execute(
            update(studies)
            .where(studies.c.id == study_id, *budget_left)
            .values(issued=studies.c.issued + 1)
        )
        # Ours until we commit: the row is locked.
        issued = connection.execute(select(studies.c.issued).where(studies.c.id == study_id))
        total = issued.scalar()
        if total is None:
            raise StudyNotFoundError("the study is no longer in the database: it was deleted")
        if counted.rowcount != 1:
            return None
        asked = connection.execute(waiting).scalar()
        if asked is None and asked_only:  # another took it before the row was ours
            connection.execute(
                update(studies).where(studies.c.id == study_id).values(issued=total - 1)
            )
            return None
        if asked is not None:
            connection.execute(update(queue).where(queue.c.id == asked).values(ordinal=total - 1))
        ticket = {
            "queue_id": asked,
            "study_id": study_id,
            "ordinal": total - 1,
            "state": CLAIMED,
            "lease_owner": owner,
            "lease_expires": now + lease_seconds,
            "lease_token": token,
            "attempts": 0,
            "stuck": 0,
            "told": False,
        }
        connection.execute(insert(trials).values(ticket))
        return claim_with(connection, token)

    return db.write(take)


def claim_abandoned(
    db: Database,
    study_id: int,
    *,
    owner: str,
    now: float,
    lease_seconds: float,
    is_dead: Callable[[str], bool],
) -> Claim | None:
    """Take over the first trial that nobody runs any more; None when there is none.

    That is one that was given back, whose lease has expired, or whose owner ``is_dead`` knows to
    be gone (a process of this machine that no longer is).
    """
    return take_first(
        *(db, trials, and_(trials.c.study_id == study_id, unended), trials.c.ordinal, claim_with),
        owner=owner,
        now=now,
        lease_seconds=lease_seconds,
        is_dead=is_dead,
    )


def link(db: Database, claim: Claim, optuna_trial_id: int, number: int) -> Claim:
    """Bind the ticket to Optuna's trial, which gives it its number.

    Raises:
        LeaseLostError: another runner has the ticket now.
        AlreadyLinkedError: another ticket has this trial of Optuna's.
    """
    values = {"optuna_trial_id": optuna_trial_id, "number": number}
    try:
        db.write(lambda connection: write_if_ours(connection, claim, values))
    except IntegrityError:
        raise AlreadyLinkedError(
            f"Optuna's trial {number} already belongs to another ticket"
        ) from None
    return replace(claim, optuna_trial_id=optuna_trial_id, number=number)


def begin(
    db: Database,
    claim: Claim,
    *,
    config: TrialConfig,
    params: Mapping[str, Value],
    device: str | None,
    host: str | None,
    now: float,
) -> Claim:
    """Write down that an attempt at the trial starts, and with which configuration.

    Raises:
        LeaseLostError: another runner has the trial now.
    """
    # Counted here, not in SQL: done again it must not count twice.
    attempts = claim.attempts + 1

    def write(connection: Connection) -> int:
        before = _progress_of(connection, claim)
        if before is not None and before.attempts == attempts:
            return before.stuck  # An earlier try's commit succeeded.
        advanced = before is not None and before.advanced
        stuck = 1 if advanced or before is None else before.stuck + 1
        write_if_ours(
            connection,
            claim,
            {
                "state": RUNNING,
                "attempts": attempts,
                "stuck": stuck,
                "begun_progress": trials.c.last_progress,
                "config_json": config.model_dump_json(),
                "params_json": dumps(dict(params)),
                "fingerprint": config.fingerprint(),
                "seed": config.seed,
                "device": device,
                "host": host,
                "started_at": func.coalesce(trials.c.started_at, utc(now)),
            },
        )
        return stuck

    stuck = db.write(write)
    return replace(
        claim, attempts=attempts, stuck=stuck, config=config, params=dict(params), begun=True
    )


def has_advanced(db: Database, claim: Claim) -> bool:
    """Tell whether the trial's last attempt got further than where it had begun."""
    with db.reading() as connection:
        found = _progress_of(connection, claim)
    return found is not None and found.advanced


class _Progress(NamedTuple):
    attempts: int
    stuck: int
    advanced: bool


def _progress_of(connection: Connection, claim: Claim) -> _Progress | None:
    """Return how far the trial is since its last attempt began; None when it is not ours."""
    row = connection.execute(
        select(
            trials.c.attempts, trials.c.stuck, trials.c.last_progress, trials.c.begun_progress
        ).where(trials.c.id == claim.id, trials.c.lease_token == claim.token)
    ).one_or_none()
    if row is None:
        return None
    advanced = (row.last_progress or 0) > (row.begun_progress or 0)
    return _Progress(row.attempts, row.stuck, advanced)


def add_active_time(db: Database, study_id: int, now: float, at_most: float) -> float:
    """Count the time since anyone last called this, and return the study's total in seconds.

    However many runners call it, each second counts once. A gap over ``at_most`` seconds counts
    as ``at_most``: nobody ran. A clock that is behind another runner's counts nothing until it
    has caught up; one that is behind by over ``at_most`` was set back, and starts afresh.
    """
    last = studies.c.last_active
    elapsed = now - last
    counted = case(
        (last.is_(None), 0.0),
        (elapsed < 0, 0.0),
        (elapsed > at_most, at_most),
        else_=elapsed,
    )

    def count(connection: Connection) -> float:
        connection.execute(
            update(studies)
            .where(studies.c.id == study_id)
            .where(or_(last.is_(None), last < now, last > now + at_most))
            # In this order: MySQL computes each from what those before it have set.
            .ordered_values(
                (studies.c.active_seconds, studies.c.active_seconds + counted),
                (last, now),
            )
        )
        total = select(studies.c.active_seconds).where(studies.c.id == study_id)
        return float(connection.execute(total).scalar() or 0.0)

    return db.write(count)
