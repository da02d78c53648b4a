"""Who serves studies of this database at the moment: for `status`, nothing depends on it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, insert, select, update

from sft_tune.errors import StorageError
from sft_tune.store.database import Database
from sft_tune.store.tables import runners
from sft_tune.store.values import aware, dumps, loads, utc


class Runner(NamedTuple):
    """A runner that lives.

    Attributes:
        owner: its name in leases, ``host:pid:start time``.
        host: its machine.
        engine: ``local`` or ``ray``.
        slots: what its slots are called.
        started: when it began (aware, UTC).
    """

    owner: str
    host: str
    engine: str
    slots: list[str]
    started: datetime


def announce(
    db: Database,
    owner: str,
    *,
    host: str,
    engine: str,
    slots: Sequence[str],
    now: float,
    seconds: float,
) -> None:
    """Say that ``owner`` lives, for ``seconds`` more; rows of those long gone are removed."""

    def write(connection: Connection) -> None:
        connection.execute(delete(runners).where(runners.c.expires < now - 3600))
        alive = update(runners).where(runners.c.owner == owner).values(expires=now + seconds)
        if connection.execute(alive).rowcount:
            return
        row = {"owner": owner, "host": host, "engine": engine, "slots_json": dumps(list(slots))}
        connection.execute(
            insert(runners).values({**row, "started_at": utc(now), "expires": now + seconds})
        )

    db.write(write)


def leave(db: Database, owner: str) -> None:
    """Say that ``owner`` is gone; where that cannot be written, it is known in a minute."""

    def write(connection: Connection) -> None:
        connection.execute(delete(runners).where(runners.c.owner == owner))

    with contextlib.suppress(StorageError):
        db.write(write, attempts=1)


def live_runners(db: Database, now: float) -> list[Runner]:
    """Return the runners that said within their time that they live, the oldest first."""
    with db.reading() as connection:
        rows = connection.execute(
            select(runners).where(runners.c.expires > now).order_by(runners.c.id)
        ).mappings()
        return [
            Runner(
                owner=row["owner"],
                host=row["host"],
                engine=row["engine"],
                slots=loads(row["slots_json"]),
                started=aware(row["started_at"]) or row["started_at"],
            )
            for row in rows
        ]
