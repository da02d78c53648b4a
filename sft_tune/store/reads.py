"""Quick reads: plain SQL over Optuna's tables and ours, without Optuna and without the ORM.

Every read tolerates that Optuna's side of a study is gone (deleted in its dashboard) or that
ours is (renamed there).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, select

from sft_tune.store import optuna_tables as optuna
from sft_tune.store.database import Database
from sft_tune.store.foreign import OptunaTrial, foreign_evaluations, foreign_rows, optuna_trials
from sft_tune.store.overview import COMPLETE, study_rows
from sft_tune.store.places import Place, all_places, place_of
from sft_tune.store.rows import RUNG_FLOATS, EvaluationRow, StudyRow, TrialRow
from sft_tune.store.tables import evaluations, trials
from sft_tune.store.values import aware, join_float

__all__ = [
    "EvaluationRow",
    "StudyRow",
    "TrialRow",
    "best_row",
    "evaluation_rows",
    "list_studies",
    "rows_of",
    "study_row",
    "trial_rows",
]


def list_studies(db: Database) -> list[StudyRow]:
    """Return every study, ours first, then those that are Optuna's alone; the oldest first."""
    with db.reading() as connection:
        return study_rows(connection, all_places(connection))


def study_row(db: Database, name: str) -> StudyRow:
    """Return the study ``name``.

    Raises:
        StudyNotFoundError: neither we nor Optuna have it; the message names those there are.
    """
    with db.reading() as connection:
        return study_rows(connection, [place_of(connection, name)])[0]


def trial_rows(db: Database, name: str, number: int | None = None) -> list[TrialRow]:
    """Return the trials of the study ``name`` by number; with ``number`` that one, if any.

    Raises:
        StudyNotFoundError: neither we nor Optuna have the study.
    """
    with db.reading() as connection:
        numbers = None if number is None else [number]
        return rows_of(connection, place_of(connection, name), numbers)


def best_row(db: Database, name: str) -> TrialRow | None:
    """Return the COMPLETE trial with the best value, of equals the earlier; None without one.

    Raises:
        StudyNotFoundError: neither we nor Optuna have the study.
    """
    with db.reading() as connection:
        place = place_of(connection, name)
        candidates = _best_of_optuna(connection, place) + _best_of_ours(connection, place)
        if not candidates:
            return None
        sign = -1 if place.direction == "maximize" else 1
        _, number = min((sign * value, number) for value, number in candidates)
        return rows_of(connection, place, [number])[0]


def evaluation_rows(db: Database, name: str, number: int | None = None) -> list[EvaluationRow]:
    """Return the rungs of the study ``name``, by trial and progress; with ``number`` that trial's.

    Raises:
        StudyNotFoundError: neither we nor Optuna have the study.
    """
    with db.reading() as connection:
        place = place_of(connection, name)
        if place.our_id is None:
            if place.optuna_id is None:
                return []
            return foreign_evaluations(connection, place.optuna_id, place.get("metric"), number)
        query = (
            select(trials.c.number, *_RUNG_COLUMNS, evaluations.c.non_finite)
            .join(trials, trials.c.id == evaluations.c.trial_id)
            .where(trials.c.study_id == place.our_id, trials.c.number.is_not(None))
            .order_by(trials.c.number, evaluations.c.progress)
        )
        if number is not None:
            query = query.where(trials.c.number == number)
        return [_evaluation_row(*fields) for fields in connection.execute(query).all()]


_RUNG_COLUMNS = [evaluations.c[name] for name in EvaluationRow._fields if name != "number"]


def _evaluation_row(*fields: Any) -> EvaluationRow:
    *values, non_finite = fields
    row = EvaluationRow(*values)
    if non_finite is None:
        return row
    floats: dict[str, Any] = {
        name: join_float(getattr(row, name), non_finite, name) for name in RUNG_FLOATS
    }
    return row._replace(**floats)


# A `TrialRow` in its own order, but for `state`, which both sides decide.
_ELSEWHERE = {"phase": "state", "started": "started_at", "ended": "ended_at"}
_FIELDS = [name for name in TrialRow._fields if name != "state"]
_TRIAL_COLUMNS = [trials.c[_ELSEWHERE.get(name, name)] for name in _FIELDS]
_VALUE, _STARTED, _ENDED = (_FIELDS.index(name) for name in ("value", "started", "ended"))


def rows_of(
    connection: Connection, place: Place, numbers: Collection[int] | None
) -> list[TrialRow]:
    """Return the trials ``numbers`` of the study at ``place``, by number; None: all."""
    optunas = [] if place.optuna_id is None else optuna_trials(connection, place.optuna_id, numbers)
    ours = _our_rows(connection, place, numbers, {trial.trial_id: trial for trial in optunas})
    known = {row.number for row in ours}
    others = [trial for trial in optunas if trial.number not in known]
    if place.optuna_id is None or not others:
        return ours
    rows = ours + foreign_rows(connection, place.optuna_id, others)
    return sorted(rows, key=lambda row: row.number)


def _our_rows(
    connection: Connection,
    place: Place,
    numbers: Collection[int] | None,
    optunas: dict[int, OptunaTrial],
) -> list[TrialRow]:
    if place.our_id is None:
        return []
    query = (
        select(*_TRIAL_COLUMNS, trials.c.optuna_trial_id, trials.c.final_state, trials.c.non_finite)
        # A ticket without a number is not yet a trial.
        .where(trials.c.study_id == place.our_id, trials.c.number.is_not(None))
        .order_by(trials.c.number)
    )
    if numbers is not None:
        query = query.where(trials.c.number.in_(numbers))
    rows = []
    for *fields, optuna_id, final_state, non_finite in connection.execute(query).all():
        theirs = optunas.get(optuna_id)
        value = join_float(fields[_VALUE], non_finite, "value")
        # Of a pruned trial Optuna's is the last report, which may be on a part of validation.
        known = theirs is not None and theirs.state == COMPLETE
        fields[_VALUE] = theirs.value if value is None and theirs and known else value
        fields[_STARTED] = aware(fields[_STARTED])
        fields[_ENDED] = aware(fields[_ENDED])
        rows.append(TrialRow(fields[0], _state(theirs, final_state), *fields[1:]))
    return rows


def _state(theirs: OptunaTrial | None, final_state: str | None) -> str:
    """Return Optuna's state, or what it will be told where it was not told yet."""
    if theirs is not None and theirs.state in optuna.FINISHED:
        return theirs.state
    return final_state or (theirs.state if theirs is not None else "RUNNING")


def _best_of_optuna(connection: Connection, place: Place) -> list[tuple[float, int]]:
    if place.optuna_id is None:
        return []
    values = optuna.trial_values
    rank = case(
        (values.c.value_type == "INF_POS", 1), (values.c.value_type == "INF_NEG", -1), else_=0
    )
    downwards = place.direction == "maximize"
    order: list[ColumnElement[Any]] = [rank, values.c.value]
    row = connection.execute(
        select(values.c.value, values.c.value_type, optuna.trials.c.number)
        .join(optuna.trials, optuna.trials.c.trial_id == values.c.trial_id)
        .where(
            optuna.trials.c.study_id == place.optuna_id,
            optuna.trials.c.state == COMPLETE,
            values.c.objective == 0,
        )
        .order_by(
            *(column.desc() if downwards else column.asc() for column in order),
            optuna.trials.c.number,
        )
        .limit(1)
    ).first()
    value = None if row is None else optuna.stored_float(row.value, row.value_type)
    return [] if row is None or value is None else [(value, row.number)]


def _best_of_ours(connection: Connection, place: Place) -> list[tuple[float, int]]:
    """Return the best of the trials that Optuna does not know of, or no longer."""
    if place.our_id is None:
        return []
    query = select(trials.c.value, trials.c.number).where(
        trials.c.study_id == place.our_id,
        trials.c.final_state == COMPLETE,
        trials.c.value.is_not(None),
        trials.c.number.is_not(None),
    )
    if place.optuna_id is not None:
        query = query.where(trials.c.told.is_(False))
    downwards = place.direction == "maximize"
    order = trials.c.value.desc() if downwards else trials.c.value.asc()
    row = connection.execute(query.order_by(order, trials.c.number).limit(1)).first()
    return [] if row is None else [(row.value, row.number)]
