"""Studies at a glance: a few grouped queries, whatever the number of trials."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, func, select

from sft_tune.store import optuna_tables as optuna
from sft_tune.store.places import Place
from sft_tune.store.rows import StudyRow
from sft_tune.store.tables import ENDED, trials
from sft_tune.store.values import aware

COMPLETE = "COMPLETE"

States = dict[int, dict[str, int]]


def study_rows(connection: Connection, places: list[Place]) -> list[StudyRow]:
    """Return a row for each of ``places``, in their order."""
    our_ids = [place.our_id for place in places if place.our_id is not None]
    optuna_ids = [place.optuna_id for place in places if place.optuna_id is not None]
    their_states = _their_states(connection, optuna_ids)
    our_states = _our_states(connection, our_ids)
    untold = _untold(connection, our_ids)
    their_values = _their_values(connection, optuna_ids)
    our_values = _our_values(connection, our_ids)
    leases = _leases(connection, our_ids)
    begun = _begun(connection, [p.optuna_id for p in places if p.ours is None and p.optuna_id])
    rows = []
    for place in places:
        ours, theirs = place.our_id or 0, place.optuna_id or 0
        states = dict(their_states[theirs]) if place.optuna_id else our_states[ours]
        if place.optuna_id:
            for state, count in untold[ours].items():
                states[state] = states.get(state, 0) + count
                states["RUNNING"] -= count
        values = our_values[ours] + their_values[theirs]
        created = place.get("created_at") or begun.get(theirs)
        rows.append(_row(place, states, values, created, leases[ours]))
    return rows


def _row(
    place: Place,
    states: dict[str, int],
    values: list[float],
    created: datetime | None,
    leases: list[tuple[str, float]],
) -> StudyRow:
    choose = max if place.direction == "maximize" else min
    return StudyRow(
        name=place.name,
        task=place.get("task"),
        metric=place.get("metric"),
        direction=place.direction,
        states={state: count for state, count in states.items() if count},
        best=choose(values) if values else None,
        created=aware(created),
        ended=place.get("ended"),
        max_trials=_total(place.get("max_trials"), place.get("extra_trials")),
        max_hours=place.get("max_hours"),
        target=place.get("target"),
        issued=place.get("issued"),
        active_seconds=place.get("active_seconds"),
        lease_until=max((expires for _, expires in leases), default=None),
        artifacts=place.get("artifacts"),
        extra_trials=place.get("extra_trials") or 0,
        wanted=place.get("wanted"),
        priority=place.get("priority") or 0,
        managed=place.ours is not None,
        optuna_study_id=place.optuna_id,
        last_active=place.get("last_active"),
        leases=tuple(leases),
        source=place.get("source_path"),
    )


def _total(trials: int | None, extra: int | None) -> int | None:
    return None if trials is None else trials + (extra or 0)


def _their_states(connection: Connection, ids: list[int]) -> States:
    table = optuna.trials
    rows = connection.execute(
        select(table.c.study_id, table.c.state, func.count())
        .where(table.c.study_id.in_(ids))
        .group_by(table.c.study_id, table.c.state)
    )
    return _counted(rows)


def _our_states(connection: Connection, ids: list[int]) -> States:
    """Count the states of studies whose Optuna side is gone."""
    rows = connection.execute(
        select(trials.c.study_id, trials.c.final_state, func.count())
        .where(trials.c.study_id.in_(ids), trials.c.number.is_not(None))
        .group_by(trials.c.study_id, trials.c.final_state)
    )
    return _counted((study_id, state or "RUNNING", count) for study_id, state, count in rows)


def _untold(connection: Connection, ids: list[int]) -> States:
    """Count ended trials that Optuna still takes for running."""
    rows = connection.execute(
        select(trials.c.study_id, trials.c.final_state, func.count())
        .join(
            optuna.trials,
            and_(
                optuna.trials.c.trial_id == trials.c.optuna_trial_id,
                optuna.trials.c.state == "RUNNING",
            ),
        )
        .where(trials.c.study_id.in_(ids), trials.c.state == ENDED, trials.c.told.is_(False))
        .group_by(trials.c.study_id, trials.c.final_state)
    )
    return _counted(rows)


def _counted(rows: Iterable[Any]) -> States:
    counts: States = defaultdict(dict)
    for study_id, state, count in rows:
        counts[study_id][state] = count
    return counts


def _their_values(connection: Connection, ids: list[int]) -> dict[int, list[float]]:
    values = optuna.trial_values
    rows = connection.execute(
        select(
            optuna.trials.c.study_id,
            values.c.value_type,
            func.min(values.c.value),
            func.max(values.c.value),
        )
        .join(values, values.c.trial_id == optuna.trials.c.trial_id)
        .where(
            optuna.trials.c.study_id.in_(ids),
            optuna.trials.c.state == COMPLETE,
            values.c.objective == 0,
        )
        .group_by(optuna.trials.c.study_id, values.c.value_type)
    )
    extremes: dict[int, list[float]] = defaultdict(list)
    for study_id, kind, *ends in rows:
        found = [optuna.stored_float(end, kind) for end in ends]
        extremes[study_id] += [value for value in found if value is not None]
    return extremes


def _our_values(connection: Connection, ids: list[int]) -> dict[int, list[float]]:
    rows = connection.execute(
        select(trials.c.study_id, func.min(trials.c.value), func.max(trials.c.value))
        .where(trials.c.study_id.in_(ids), trials.c.final_state == COMPLETE)
        .group_by(trials.c.study_id)
    )
    extremes: dict[int, list[float]] = defaultdict(list)
    for study_id, *ends in rows:
        extremes[study_id] += [value for value in ends if value is not None]
    return extremes


def _leases(connection: Connection, ids: list[int]) -> dict[int, list[tuple[str, float]]]:
    rows = connection.execute(
        select(trials.c.study_id, trials.c.lease_owner, func.max(trials.c.lease_expires))
        .where(
            trials.c.study_id.in_(ids),
            trials.c.lease_owner.is_not(None),
            trials.c.lease_expires.is_not(None),
        )
        .group_by(trials.c.study_id, trials.c.lease_owner)
    )
    found: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for study_id, owner, expires in rows:
        found[study_id].append((str(owner), float(expires or 0.0)))
    return found


def _begun(connection: Connection, ids: list[int]) -> dict[int, datetime]:
    """Return when the first trial of each study that is Optuna's alone was begun."""
    if not ids:
        return {}
    table = optuna.trials
    rows = connection.execute(
        select(table.c.study_id, func.min(table.c.datetime_start))
        .where(table.c.study_id.in_(ids))
        .group_by(table.c.study_id)
    )
    return {study_id: begun for study_id, begun in rows if begun is not None}
