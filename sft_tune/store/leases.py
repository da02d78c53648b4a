"""A claim on a trial: the token that proves it, and the writes that hold only with it.

A claim has a lease, which its owner renews; when it expires anyone may take the trial over,
which gives it another token. Every write names its token and checks that it changed a row, so a
runner that lost its lease (it slept, its clock jumped) learns so at its next write and changes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import Connection, Table, func, select, update

from sft_tune.errors import SftTuneError
from sft_tune.store.database import Database
from sft_tune.store.tables import ENDED, INTERRUPTED, queue, studies, trials, unended
from sft_tune.store.values import loads

if TYPE_CHECKING:
    # `best` and `status` come by here, and need not wait for the models of study files.
    from sft_tune.spec.config import TrialConfig
    from sft_tune.spec.space import Value


class LeaseLostError(SftTuneError):
    """Another runner has taken the trial over; what this one still knows of it is void."""


class AlreadyLinkedError(SftTuneError):
    """Optuna's trial belongs to another ticket of the study; ask Optuna for a new one."""


@dataclass(frozen=True)
class Claim:
    """A ticket or trial that ``owner`` holds.

    Attributes:
        id: of the row in `sft_trials`.
        study_id: of the row in `sft_studies`.
        ordinal: which ticket of the budget it is, from 0.
        place: which one of the search's own it is: those asked for from outside are not counted.
        owner: who holds it.
        token: proof of this holding; every claim of the row gets another.
        metric: the study's metric.
        optuna_trial_id: Optuna's trial; None until `link`.
        number: the trial's number, Optuna's; None until `link`.
        attempts: how often it has begun, this time included; those that `release` ended are not.
        stuck: how many of these, the last ones, began where the one before had begun.
        config: its configuration; None until `begin`.
        params: its point of the space; None until `begin`.
        asked: its point of the space where it was asked for from outside (`control.enqueue`).
        stop_requested: whether someone wants it to end where it is.
        taken_from: the owner that was lost; None for a ticket that is new or was given back.
        begun: whether `begin` was called under this token.
        table: where its row is: `sft_trials`, or `sft_finalists` for a confirmation run.
    """

    id: int
    study_id: int
    ordinal: int
    place: int
    owner: str
    token: str
    metric: str
    optuna_trial_id: int | None
    number: int | None
    attempts: int
    stuck: int
    config: TrialConfig | None
    params: dict[str, Value] | None
    asked: dict[str, Value] | None
    stop_requested: bool
    taken_from: str | None = None
    begun: bool = False
    table: Table[Any] = trials

    @property
    def name(self) -> str:
        """What a message calls it."""
        name = f"ticket {self.ordinal}" if self.number is None else f"trial {self.number}"
        return name if self.table is trials else f"a confirmation run of {name}"


_earlier = trials.alias("earlier")
_asked_before = (
    select(func.count())
    .select_from(_earlier)
    .where(
        _earlier.c.study_id == trials.c.study_id,
        _earlier.c.ordinal < trials.c.ordinal,
        _earlier.c.queue_id.is_not(None),
    )
    .correlate(trials)
    .scalar_subquery()
)


def claim_with(connection: Connection, token: str) -> Claim | None:
    """Return the claim whose token is ``token``; None when nobody holds by it."""
    row = connection.execute(
        select(
            trials.c.id,
            trials.c.study_id,
            trials.c.ordinal,
            trials.c.lease_owner,
            trials.c.lease_token,
            studies.c.metric,
            trials.c.optuna_trial_id,
            trials.c.number,
            trials.c.attempts,
            trials.c.stuck,
            trials.c.config_json,
            trials.c.params_json,
            trials.c.stop_requested,
            queue.c.params_json.label("asked_json"),
            _asked_before.label("asked_before"),
        )
        .outerjoin(queue, queue.c.id == trials.c.queue_id)
        .join(studies, studies.c.id == trials.c.study_id)
        .where(trials.c.lease_token == token)
    ).one_or_none()
    if row is None:
        return None
    from sft_tune.spec.config import TrialConfig

    config = row.config_json
    return Claim(
        id=row.id,
        study_id=row.study_id,
        ordinal=row.ordinal,
        place=row.ordinal - row.asked_before,
        owner=row.lease_owner or "",
        token=row.lease_token,
        metric=row.metric,
        optuna_trial_id=row.optuna_trial_id,
        number=row.number,
        attempts=row.attempts,
        stuck=row.stuck,
        config=None if config is None else TrialConfig.model_validate_json(config),
        params=loads(row.params_json),
        asked=loads(row.asked_json),
        stop_requested=bool(row.stop_requested),
    )


def write_if_ours(connection: Connection, claim: Claim, values: Mapping[str, Any]) -> None:
    """Write ``values`` to the row of ``claim``.

    Raises:
        LeaseLostError: when another runner has the row now, or it has ended.
    """
    table = claim.table
    written = connection.execute(
        update(table)
        .where(
            table.c.id == claim.id,
            table.c.lease_token == claim.token,
            table.c.state != ENDED,
        )
        .values(values)
    )
    if written.rowcount != 1:
        raise LeaseLostError(
            f"{claim.name}: {claim.owner} no longer holds its lease; what it did since is left out"
        )


def write_end(db: Database, claim: Claim, values: Mapping[str, Any]) -> None:
    """Write down that what ``claim`` holds has ended, with ``values``, and free its lease.

    Raises:
        LeaseLostError: another runner has it now, or ended it.
    """
    table = claim.table
    ended = {**values, "state": ENDED, "lease_owner": None, "lease_expires": None}

    def write(connection: Connection) -> None:
        row = connection.execute(
            select(table.c.state, table.c.lease_token).where(table.c.id == claim.id)
        ).one_or_none()
        if row is not None and tuple(row) == (ENDED, claim.token):
            return  # An earlier try's commit succeeded.
        write_if_ours(connection, claim, ended)

    db.write(write)


def renew(
    db: Database, owner: str, now: float, lease_seconds: float, table: Table[Any] = trials
) -> set[int]:
    """Prolong every lease of ``owner`` in ``table`` and return the ids of its claims.

    A claim that is not among them was lost to another runner.
    """
    own = (table.c.lease_owner == owner, table.c.state != ENDED)

    def prolong(connection: Connection) -> set[int]:
        connection.execute(update(table).where(*own).values(lease_expires=now + lease_seconds))
        return set(connection.execute(select(table.c.id).where(*own)).scalars())

    return db.write(prolong)


def release(db: Database, claim: Claim) -> bool:
    """Give the trial back for anyone to go on with; False when it was no longer ours.

    The attempt does not count: it ended in order, with all that it did kept.
    """
    free: dict[str, Any] = {
        "state": INTERRUPTED,
        "attempts": claim.attempts - claim.begun,
        "lease_owner": None,
        "lease_expires": None,
        # A new token: writes that are still on their way from this holding are void.
        "lease_token": uuid4().hex,
    }
    if claim.table is trials:
        free["stuck"] = max(0, claim.stuck - claim.begun)
    try:
        db.write(lambda connection: write_if_ours(connection, claim, free))
    except LeaseLostError:
        return False
    return True


def release_all(db: Database, owner: str) -> None:
    """Give back every trial that ``owner`` holds: it has begun anew, and runs none of them."""
    free = {"state": INTERRUPTED, "lease_owner": None, "lease_expires": None}

    def write(connection: Connection) -> None:
        own = select(trials.c.id).where(trials.c.lease_owner == owner, unended)
        for row in connection.execute(own).scalars().all():
            given_back = {**free, "lease_token": uuid4().hex}
            connection.execute(update(trials).where(trials.c.id == row).values(given_back))

    db.write(write)


def live_owners(db: Database, study_id: int, now: float) -> set[str]:
    """Return the owners of leases that have not expired at ``now``."""
    with db.reading() as connection:
        owners = connection.execute(
            select(trials.c.lease_owner).where(
                trials.c.study_id == study_id, unended, trials.c.lease_expires > now
            )
        ).scalars()
        return {owner for owner in owners if owner is not None}
