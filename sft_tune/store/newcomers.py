"""Which trials of a study end, whoever runs them: each look reads only those that are new."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import or_, select

from sft_tune.store.database import Database
from sft_tune.store.places import place_of
from sft_tune.store.reads import rows_of
from sft_tune.store.rows import TrialRow
from sft_tune.store.tables import ENDED, studies, trials


class Newcomers:
    """Trials of ours that have ended since the last look, by the numbers that are known to have."""

    def __init__(self, db: Database, study: str, ended: Iterable[int]) -> None:
        """Follow ``study`` of ``db``, which need not be there yet; ``ended`` are known."""
        self._db = db
        self._study = study
        known = set(ended)
        self._newest = max(known, default=-1)
        self._open = set(range(self._newest + 1)) - known

    @classmethod
    def from_now(cls, db: Database, study: str) -> Newcomers:
        """Follow ``study`` from where it stands."""
        with db.reading() as connection:
            ended = connection.execute(
                select(trials.c.number)
                .join(studies, studies.c.id == trials.c.study_id)
                .where(studies.c.name == study, trials.c.state == ENDED)
            ).scalars()
            return cls(db, study, [number for number in ended if number is not None])

    def note(self, number: int) -> None:
        """Take the trial ``number`` for known: whoever asks has ended it."""
        if number > self._newest:
            # A lower number may be linked to its ticket later than a higher one.
            self._open.update(range(self._newest + 1, number))
            self._newest = number
        self._open.discard(number)

    def look(self) -> list[TrialRow]:
        """Return the trials that have ended since, in the order in which they did."""
        with self._db.reading() as connection:
            numbers = connection.execute(
                select(trials.c.number)
                .join(studies, studies.c.id == trials.c.study_id)
                .where(
                    studies.c.name == self._study,
                    trials.c.state == ENDED,
                    trials.c.number
                    >= min(self._open, default=self._newest),  # which an index finds
                    or_(trials.c.number > self._newest, trials.c.number.in_(sorted(self._open))),
                )
                .order_by(trials.c.number)
            ).scalars()
            found = [number for number in numbers if number is not None]
            if not found:
                return []
            rows = rows_of(connection, place_of(connection, self._study), found)
        for number in found:
            self.note(number)
        return sorted(rows, key=lambda row: (row.ended is None, row.ended, row.number))
