"""Where a large study stands: its ended trials counted by the database, only a few read as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection, case, func, select

from sft_tune.store.database import Database
from sft_tune.store.overview import COMPLETE
from sft_tune.store.places import Place, place_of
from sft_tune.store.reads import rows_of
from sft_tune.store.rows import TrialRow
from sft_tune.store.tables import ENDED, studies, trials
from sft_tune.store.values import loads

NEWEST_FAILURES = 3
FAILURES = ("crashed", "stalled", "out_of_memory", "diverged")
GIVEN_UP_FOR = ("crashed", "stalled", "out_of_memory")
"""Of these a study bears no more than ``budget.failures`` in a row."""


class Tally(NamedTuple):
    """Ended trials of one kind.

    Attributes:
        reason: why they ended; ``duplicate`` of those that took another's result.
        progress: how far they came, in percent; None where it is not known.
        trials: how many.
        seconds: on the device, together.
        samples: training examples that they saw, where their speed is known.
        timed: seconds of those whose speed is known.
    """

    reason: str
    progress: int | None
    trials: int
    seconds: float
    samples: float
    timed: float


class Standing(NamedTuple):
    """A study of ours, counted.

    Attributes:
        tallies: all trials that have ended.
        rows: by number, those that have not, the best, the default configuration's, and the last
            failures.
        total: how many trials there are.
    """

    tallies: Sequence[Tally]
    rows: Sequence[TrialRow]
    total: int

    @property
    def ended(self) -> int:
        """How many trials have ended."""
        return sum(tally.trials for tally in self.tallies)


def standing(db: Database, name: str) -> Standing | None:
    """Return where the study ``name`` stands; None where it has no side of ours to count.

    Raises:
        StudyNotFoundError: neither we nor Optuna have the study.
    """
    with db.reading() as connection:
        place = place_of(connection, name)
        if place.our_id is None:
            return None
        total = select(func.count()).where(
            trials.c.study_id == place.our_id, trials.c.number.is_not(None)
        )
        return Standing(
            _tallies(connection, place.our_id),
            rows_of(connection, place, _notable(connection, place, place.our_id)),
            connection.execute(total).scalar_one(),
        )


def failed_in_a_row(db: Database, name: str) -> int | None:
    """Return ``budget.failures`` where so many of the last trials failed; else None.

    Raises:
        StudyNotFoundError: neither we nor Optuna have the study.
    """
    with db.reading() as connection:
        place = place_of(connection, name)
        if place.our_id is None:
            return None
        spec = select(studies.c.spec_json).where(studies.c.id == place.our_id)
        # The study file's models would take longer to load than all the rest.
        most = int(loads(connection.execute(spec).scalar_one())["budget"]["failures"])
        last = connection.execute(
            select(trials.c.reason)
            .where(trials.c.study_id == place.our_id, trials.c.state == ENDED)
            .order_by(trials.c.ended_at.desc(), trials.c.id.desc())
            .limit(most)
        ).scalars()
        reasons = list(last)
    return most if len(reasons) == most and set(reasons) <= set(GIVEN_UP_FOR) else None


def default_row(db: Database, name: str) -> TrialRow | None:
    """Return the trial of the default configuration, the first of the budget; None before it.

    Raises:
        StudyNotFoundError: neither we nor Optuna have the study.
    """
    with db.reading() as connection:
        place = place_of(connection, name)
        number = None if place.our_id is None else _default(connection, place.our_id)
        return None if number is None else rows_of(connection, place, [number])[0]


def _tallies(connection: Connection, study_id: int) -> list[Tally]:
    kind = case((trials.c.duplicate_of.is_not(None), "duplicate"), else_=trials.c.reason)
    seconds = func.coalesce(trials.c.seconds, 0.0)
    speed = trials.c.samples_per_second
    found = connection.execute(
        select(
            kind,
            trials.c.last_progress,
            func.count(),
            func.sum(seconds),
            func.sum(func.coalesce(speed, 0.0) * seconds),
            func.sum(case((speed > 0, seconds), else_=0.0)),
        )
        .where(
            trials.c.study_id == study_id,
            trials.c.state == ENDED,
            trials.c.number.is_not(None),
        )
        .group_by(kind, trials.c.last_progress)
    )
    # MariaDB gives sums as decimals.
    return [Tally(*row[:3], *map(float, row[3:])) for row in found.all()]


def _notable(connection: Connection, place: Place, study_id: int) -> list[int]:
    own = (trials.c.study_id == study_id, trials.c.number.is_not(None))
    numbers = select(trials.c.number).where(*own)
    value = trials.c.value.desc() if place.direction == "maximize" else trials.c.value.asc()
    best = (
        numbers.where(
            trials.c.final_state == COMPLETE,
            trials.c.value.is_not(None),
            trials.c.duplicate_of.is_(None),
        )
        .order_by(value, trials.c.ended_at, trials.c.number)
        .limit(1)
    )
    failures = (
        numbers.where(trials.c.reason.in_(FAILURES))
        .order_by(trials.c.number.desc())
        .limit(NEWEST_FAILURES)
    )
    found: set[int | None] = {_default(connection, study_id)}
    for query in (numbers.where(trials.c.state != ENDED), best, failures):
        found.update(connection.execute(query).scalars())
    return sorted(number for number in found if number is not None)


def _default(connection: Connection, study_id: int) -> int | None:
    # What waits in the queue may come before it, and is not of the budget.
    query = (
        select(trials.c.number)
        .where(
            trials.c.study_id == study_id,
            trials.c.queue_id.is_(None),
            trials.c.params_json.is_not(None),
        )
        .order_by(trials.c.ordinal)
        .limit(1)
    )
    return connection.execute(query).scalar()
