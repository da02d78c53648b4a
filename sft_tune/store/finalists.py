"""Confirmation runs: finalists trained again over fresh seeds, shared by any number of runners.

A run is a row of `sft_finalists`, one for each trial and seed, so that none is asked for twice.
It is held by a lease as a trial is (see `leases`); Optuna knows nothing of it.

No clock in here: ``now`` is in seconds since 1970, the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from sft_tune.store.control import Wishes
from sft_tune.store.database import Database
from sft_tune.store.leases import Claim, write_end, write_if_ours
from sft_tune.store.tables import ENDED, RUNNING, WAITING, finalists, studies, trials
from sft_tune.store.takeover import take_first
from sft_tune.store.values import dumps, loads, plain_text, split_floats, utc

AGAIN = ("crashed", "stalled", "stopped")
"""Reasons after which a run that is asked for once more is tried again."""


def ask(
    db: Database, study_id: int, numbers: Sequence[int], seeds: Sequence[int]
) -> tuple[int, ...]:
    """Have the trials ``numbers`` trained again under each of ``seeds``; return the runs' ids.

    A run that was asked for before stays as it is; one that failed waits to be tried again. The
    first seed of every trial comes before the second of any, so that what there is of an
    unfinished confirmation is of equal parts.
    """
    with db.reading() as connection:
        found = connection.execute(
            select(trials.c.number, trials.c.id).where(
                trials.c.study_id == study_id, trials.c.number.in_(numbers)
            )
        )
        ids = {number: trial_id for number, trial_id in found}
    pairs = [(ids[number], seed) for seed in seeds for number in numbers]
    return tuple(_ask_one(db, trial_id, seed) for trial_id, seed in pairs)


def _ask_one(db: Database, trial_id: int, seed: int) -> int:
    here = (finalists.c.trial_id == trial_id, finalists.c.seed == seed)
    fresh: dict[str, Any] = {"state": WAITING, "lease_token": uuid4().hex, "attempts": 0}
    again = {**fresh, "reason": None, "note": None, "ended_at": None}

    def add(connection: Connection) -> int:
        connection.execute(
            update(finalists)
            .where(*here, finalists.c.state == ENDED, finalists.c.reason.in_(AGAIN))
            .values(again)
        )
        known = connection.execute(select(finalists.c.id).where(*here)).scalar()
        if known is not None:
            return known
        row = {**fresh, "trial_id": trial_id, "seed": seed}
        connection.execute(insert(finalists).values(row))
        return connection.execute(select(finalists.c.id).where(*here)).scalar_one()

    try:
        return db.write(add)
    except IntegrityError:  # Another runner asked for it since we looked.
        return db.write(add)


def claim_run(
    db: Database,
    study_id: int,
    ids: Sequence[int],
    *,
    owner: str,
    now: float,
    lease_seconds: float,
    is_dead: Callable[[str], bool],
) -> Claim | None:
    """Take the first of the runs ``ids`` that waits, or that nobody runs any more; None: none."""
    return take_first(
        *(db, finalists, finalists.c.id.in_(ids), finalists.c.id),
        lambda connection, token: _claim_with(connection, study_id, token),
        owner=owner,
        now=now,
        lease_seconds=lease_seconds,
        is_dead=is_dead,
    )


def _claim_with(connection: Connection, study_id: int, token: str) -> Claim | None:
    """Return the claim on a run whose token is ``token``, its configuration under its seed."""
    row = connection.execute(
        select(
            finalists.c.id,
            finalists.c.seed,
            finalists.c.lease_owner,
            finalists.c.attempts,
            studies.c.metric,
            trials.c.ordinal,
            trials.c.number,
            trials.c.config_json,
            trials.c.params_json,
        )
        .join(trials, trials.c.id == finalists.c.trial_id)
        .join(studies, studies.c.id == trials.c.study_id)
        .where(finalists.c.lease_token == token, studies.c.id == study_id)
    ).one_or_none()
    if row is None:
        return None
    from sft_tune.spec.config import TrialConfig

    config = TrialConfig.model_validate_json(row.config_json or "")
    return Claim(
        id=row.id,
        study_id=study_id,
        ordinal=row.ordinal,
        place=row.ordinal,
        owner=row.lease_owner or "",
        token=token,
        metric=row.metric,
        optuna_trial_id=None,
        number=row.number,
        attempts=row.attempts,
        stuck=row.attempts,
        config=config.model_copy(update={"seed": row.seed}),
        params=loads(row.params_json),
        asked=None,
        stop_requested=False,
        table=finalists,
    )


def begin(db: Database, claim: Claim, *, device: str, host: str, now: float) -> Claim:
    """Write down that an attempt at the run starts.

    Raises:
        LeaseLostError: another runner has it now.
    """
    attempts = claim.attempts + 1
    values = {
        "state": RUNNING,
        "attempts": attempts,
        "device": device,
        "host": host,
        "started_at": func.coalesce(finalists.c.started_at, utc(now)),
    }
    db.write(lambda connection: write_if_ours(connection, claim, values))
    return replace(claim, attempts=attempts, begun=True)


def reach(db: Database, claim: Claim, progress: int, value: float) -> None:
    """Write down that the run has reached the rung at ``progress`` percent, with ``value``.

    Raises:
        LeaseLostError: another runner has it now.
    """
    values = {
        "last_progress": progress,
        "last_value": split_floats({"value": value})["value"],
    }
    db.write(lambda connection: write_if_ours(connection, claim, values))


def end(db: Database, claim: Claim, outcome: Mapping[str, Any], *, now: float) -> None:
    """Write down how the run ended, and free its lease.

    Args:
        db: the database.
        claim: the run.
        outcome: `reason`, and what there is of `note`, `value`, `metrics`, `test_metrics`,
            `seconds`.
        now: seconds since 1970.

    Raises:
        LeaseLostError: another runner has the run now, or ended it.
    """
    metrics, held_out = outcome.get("metrics"), outcome.get("test_metrics")
    values = {
        "reason": outcome["reason"],
        "note": plain_text(str(outcome.get("note") or "")),
        **split_floats({"value": outcome.get("value"), "seconds": outcome.get("seconds")}),
        "validation_metrics_json": None if metrics is None else dumps(metrics),
        "test_metrics_json": None if held_out is None else dumps(held_out),
        "ended_at": utc(now),
    }
    write_end(db, claim, values)


def wishes(db: Database, study_id: int, ids: Sequence[int], owner: str, now: float) -> Wishes:
    """Return what is wanted of the runs ``ids``, as the runner ``owner`` sees it."""
    with db.reading() as connection:
        row = connection.execute(
            select(studies.c.id, studies.c.wanted).where(studies.c.id == study_id)
        ).one_or_none()
        unfinished = connection.execute(
            select(finalists.c.lease_owner, finalists.c.lease_expires).where(
                finalists.c.id.in_(ids), finalists.c.state != ENDED
            )
        ).all()
    return Wishes(
        exists=row is not None,
        wanted=None if row is None else row.wanted,
        ending=frozenset(),
        others=sum(
            run.lease_owner not in (None, owner) and (run.lease_expires or 0) > now
            for run in unfinished
        ),
        open=len(unfinished),
    )
