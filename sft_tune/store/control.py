"""What people want of a study that others run: stop, pause, one more configuration, a retry.

Wishes are rows; runners read them every few seconds with `wishes`, and claims respect them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from sft_tune.store.database import Database
from sft_tune.store.tables import ENDED, queue, studies, trials, unended
from sft_tune.store.values import dumps, loads, utc

if TYPE_CHECKING:
    from sft_tune.spec.space import Value


@dataclass(frozen=True)
class Wishes:
    """What is wanted of a study now.

    Attributes:
        exists: whether it is still in the database.
        wanted: ``paused`` (nothing runs until it is resumed), ``stopped`` (nothing runs until it
            is started again), or None.
        ending: ids of the running trials that are to end where they are.
        others: how many of its trials are held by others than the asking owner, leases alive.
        open: how many of its trials have not ended, held or not.
    """

    exists: bool
    wanted: str | None
    ending: frozenset[int]
    others: int
    open: int


def wishes(db: Database, study_id: int, owner: str, now: float) -> Wishes:
    """Return what is wanted of the study, as the runner ``owner`` sees it."""
    with db.reading() as connection:
        row = connection.execute(
            select(studies.c.id, studies.c.wanted).where(studies.c.id == study_id)
        ).one_or_none()
        unfinished = connection.execute(
            select(
                trials.c.id,
                trials.c.lease_owner,
                trials.c.lease_expires,
                trials.c.stop_requested,
            ).where(trials.c.study_id == study_id, unended)
        ).all()
    return Wishes(
        exists=row is not None,
        wanted=None if row is None else row.wanted,
        ending=frozenset(trial.id for trial in unfinished if trial.stop_requested),
        others=sum(
            trial.lease_owner not in (None, owner) and (trial.lease_expires or 0) > now
            for trial in unfinished
        ),
        open=len(unfinished),
    )


def want(db: Database, study_id: int, wanted: str | None) -> None:
    """Have the study ``paused`` or ``stopped`` by whoever runs it; None: let it run."""
    _update_study(db, study_id, {"wanted": wanted})


def set_priority(db: Database, study_id: int, priority: int) -> None:
    """Let workers that serve several studies prefer those of higher ``priority`` (default 0)."""
    _update_study(db, study_id, {"priority": priority})


def stop_trial(db: Database, study_id: int, number: int) -> bool:
    """Ask for the end of the unfinished trial ``number``; False when there is none such."""

    def write(connection: Connection) -> bool:
        asked = connection.execute(
            update(trials)
            .where(
                trials.c.study_id == study_id,
                trials.c.number == number,
                trials.c.state != ENDED,
            )
            .values(stop_requested=True)
        )
        return asked.rowcount == 1

    return db.write(write)


def enqueue(
    db: Database,
    study_id: int,
    points: Sequence[dict[str, Value]],
    *,
    now: float,
    retry_of: Sequence[int] | None = None,
) -> int:
    """Ask for trials at ``points``, next and on top of the study's budget; return how many.

    Args:
        db: the database.
        study_id: of the study's row.
        points: complete points of the space.
        now: seconds since 1970.
        retry_of: the numbers of the failed trials that these repeat; one that was asked for
            before is left out.
    """
    added = 0
    for index, point in enumerate(points):
        row: dict[str, Any] = {
            "study_id": study_id,
            "params_json": dumps(point),
            "retry_of": None if retry_of is None else retry_of[index],
            "created_at": utc(now),
        }

        def add(connection: Connection, row: dict[str, Any] = row) -> None:
            connection.execute(insert(queue).values(row))
            connection.execute(
                update(studies)
                .where(studies.c.id == study_id)
                .values(extra_trials=studies.c.extra_trials + 1, ended=None)
            )

        try:
            db.write(add)
        except IntegrityError:
            continue
        added += 1
    return added


def waiting(db: Database, study_id: int) -> list[dict[str, Value]]:
    """Return the points that were asked for and have no trial yet."""
    with db.reading() as connection:
        rows = connection.execute(
            select(queue.c.params_json)
            .where(queue.c.study_id == study_id, queue.c.ordinal.is_(None))
            .order_by(queue.c.id)
        ).scalars()
        return [loads(text) for text in rows]


def open_studies(db: Database) -> list[tuple[str, int]]:
    """Return name and priority of the studies that may go on; the most urgent, then oldest, first.

    Left out are those that have ended, and those that someone has paused or stopped.
    """
    with db.reading() as connection:
        rows = connection.execute(
            select(studies.c.name, studies.c.priority)
            .where(studies.c.ended.is_(None), studies.c.wanted.is_(None))
            .order_by(studies.c.priority.desc(), studies.c.id)
        ).all()
        return [(row.name, row.priority) for row in rows]


def _update_study(db: Database, study_id: int, values: dict[str, Any]) -> None:
    def write(connection: Connection) -> None:
        connection.execute(update(studies).where(studies.c.id == study_id).values(values))

    db.write(write)
