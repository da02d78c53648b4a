"""Which ended trials have their best weights on disk."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, select, update

from sft_tune.store.database import Database
from sft_tune.store.tables import ENDED, trials


class Kept(NamedTuple):
    """An ended trial whose checkpoint stays so far; ``state`` is Optuna's word for its end."""

    id: int
    number: int
    state: str
    value: float | None


def kept_checkpoints(db: Database, study_id: int) -> list[Kept]:
    """Return the study's ended trials that have a checkpoint, in the order of their numbers."""
    with db.reading() as connection:
        rows = connection.execute(
            select(trials.c.id, trials.c.number, trials.c.final_state, trials.c.value)
            .where(
                trials.c.study_id == study_id,
                trials.c.state == ENDED,
                trials.c.checkpoint.is_not(None),
            )
            .order_by(trials.c.number)
        ).all()
    return [Kept._make(row) for row in rows]


def forget_checkpoint(db: Database, kept: Kept) -> None:
    """Write down that the trial's checkpoint is no more; before its files go, so none is missed."""

    def write(connection: Connection) -> None:
        connection.execute(update(trials).where(trials.c.id == kept.id).values(checkpoint=None))

    db.write(write)
