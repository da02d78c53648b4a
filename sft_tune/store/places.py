"""Where a study is: in our tables, in Optuna's, or both; found by its name.

Optuna's dashboard deletes studies, and renames one by copying it to a new id, so neither side
can be relied on. And SQLite gives the ids of deleted rows again, so an id alone says nothing: a
study's two sides belong together when name and id agree.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection, RowMapping, and_, select

from sft_tune.store import optuna_tables as optuna
from sft_tune.store.attributes import STUDY
from sft_tune.store.names import not_found
from sft_tune.store.tables import studies
from sft_tune.store.values import loads


class Place(NamedTuple):
    """A study's two sides.

    Attributes:
        name: its name.
        ours: its row in `sft_studies`, without the long texts; None when it is Optuna's alone.
        optuna_id: Optuna's study; None when its side is gone, or not yet made.
        direction: ``maximize`` or ``minimize``.
        essentials: `attributes.STUDY` of Optuna's side where ``ours`` is None.
    """

    name: str
    ours: RowMapping | None
    optuna_id: int | None
    direction: str
    essentials: dict[str, Any]

    @property
    def our_id(self) -> int | None:
        """Id of the row in `sft_studies`."""
        return None if self.ours is None else self.ours["id"]

    def get(self, name: str) -> Any:
        """Return a column of `sft_studies`, or of what Optuna's side keeps of it; else None."""
        return self.essentials.get(name) if self.ours is None else self.ours[name]


_LONG = ("spec_json", "source_text", "versions_json", "facts_json")
_OUR_COLUMNS = [column for column in studies.c if column.name not in _LONG]


def all_places(connection: Connection, name: str | None = None) -> list[Place]:
    """Return every study, the oldest first; with ``name`` that one, if it is there."""
    ours = select(*_OUR_COLUMNS).order_by(studies.c.id)
    theirs = (
        select(
            optuna.studies.c.study_id,
            optuna.studies.c.study_name,
            optuna.study_directions.c.direction,
        )
        .outerjoin(
            optuna.study_directions,
            and_(
                optuna.study_directions.c.study_id == optuna.studies.c.study_id,
                optuna.study_directions.c.objective == 0,
            ),
        )
        .order_by(optuna.studies.c.study_id)
    )
    if name is not None:
        ours = ours.where(studies.c.name == name)
        theirs = theirs.where(optuna.studies.c.study_name == name)
    rows = {row["name"]: row for row in connection.execute(ours).mappings()}
    found = connection.execute(theirs).all()
    # MySQL takes names that differ in case for equal; we do not.
    found = [row for row in found if name is None or row.study_name == name]
    ids = {row.study_name: row.study_id for row in found}
    places = [_ours(row, ids.get(row["name"])) for row in rows.values()]
    foreign = [row for row in found if row.study_name not in rows]
    kept = _essentials(connection) if foreign else {}
    return places + [
        Place(
            row.study_name,
            None,
            row.study_id,
            (row.direction or "MINIMIZE").lower(),
            kept.get(row.study_id, {}),
        )
        for row in foreign
    ]


def _ours(row: RowMapping, optuna_id: int | None) -> Place:
    same = optuna_id is not None and row["optuna_study_id"] == optuna_id
    return Place(row["name"], row, optuna_id if same else None, row["direction"], {})


def _essentials(connection: Connection) -> dict[int, dict[str, Any]]:
    table = optuna.study_user_attributes
    rows = connection.execute(
        select(table.c.study_id, table.c.value_json).where(table.c.key == STUDY)
    )
    return {study_id: loads(text) for study_id, text in rows}


def place_of(connection: Connection, name: str) -> Place:
    """Return the study ``name``.

    Raises:
        StudyNotFoundError: neither we nor Optuna have it; the message names those there are.
    """
    places = all_places(connection, name)
    if not places:
        raise not_found(name, (place.name for place in all_places(connection)))
    return places[0]
