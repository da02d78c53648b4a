"""Taking over what nobody runs any more: given back, its lease expired, or its owner gone.

No clock in here: ``now`` is in seconds since 1970, the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, Table, or_, select, true, update

from sft_tune.store.database import Database
from sft_tune.store.leases import Claim
from sft_tune.store.tables import ENDED


def take_first(
    db: Database,
    table: Table[Any],
    wanted: ColumnElement[bool],
    order: ColumnElement[int],
    find: Callable[[Connection, str], Claim | None],
    *,
    owner: str,
    now: float,
    lease_seconds: float,
    is_dead: Callable[[str], bool],
) -> Claim | None:
    """Take over the first row that has not ended and that nobody runs; None when there is none.

    Args:
        db: the database.
        table: of the rows.
        wanted: the condition on those that are asked for.
        order: the column by which one is the first.
        find: returns the claim under a token; None when nobody holds by it.
        owner: who takes it.
        now: seconds since 1970.
        lease_seconds: for how long.
        is_dead: tells whether an owner is known to be gone.
    """
    with db.reading() as connection:
        rows = connection.execute(
            select(table.c.id, table.c.lease_owner, table.c.lease_expires, table.c.lease_token)
            .where(wanted, table.c.state != ENDED)
            .order_by(order)
        ).all()
    for row_id, holder, expires, holding in rows:
        over = holder is None or expires is None or expires <= now
        if not over and not (holder and is_dead(holder)):
            continue
        # A lease that had expired may have been renewed since we looked; a dead owner's not.
        condition = _unheld(table, now) if over else true()
        token = uuid4().hex
        values = {"lease_owner": owner, "lease_expires": now + lease_seconds, "lease_token": token}
        here = (table.c.id == row_id, table.c.lease_token == holding, condition)
        claim = _take(db, table, here, values, find)
        if claim is not None:
            return replace(claim, taken_from=holder)
    return None


def _unheld(table: Table[Any], now: float) -> ColumnElement[bool]:
    """Return the condition that nobody holds a row of ``table`` at ``now``."""
    return or_(table.c.lease_owner.is_(None), table.c.lease_expires <= now)


def _take(
    db: Database,
    table: Table[Any],
    here: tuple[ColumnElement[bool], ...],
    values: dict[str, Any],
    find: Callable[[Connection, str], Claim | None],
) -> Claim | None:
    """Write ``values``, a new token among them, to the row that is ``here`` and has not ended.

    The row is the taker's if its token is the new one afterwards: it changed now, or at an
    earlier try whose commit's answer was lost.
    """

    def take(connection: Connection) -> Claim | None:
        connection.execute(update(table).where(table.c.state != ENDED, *here).values(values))
        return find(connection, values["lease_token"])

    return db.write(take)
