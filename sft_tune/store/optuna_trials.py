"""Optuna's storage, except that it reads trials with plain SQL.

Optuna's own makes an object of every row, of which a trial of ten rungs has 20: at 10,000 trials a
runner spends 8 seconds of CPU before its first. Here a row is a tuple, and the distributions, which
trials share, are made once.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Container
from functools import cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import ColumnElement, Connection, Row, Table, or_, select

from sft_tune.store.optuna_tables import (
    stored_float,
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)

_CHILDREN: dict[Table[Any], tuple[str, ...]] = {
    trial_values: ("objective", "value", "value_type"),
    trial_params: ("param_name", "param_value", "distribution_json"),
    trial_user_attributes: ("key", "value_json"),
    trial_system_attributes: ("key", "value_json"),
    trial_intermediate_values: ("step", "intermediate_value", "intermediate_value_type"),
}
"""What is read of the tables with rows of trials."""

_Rows = dict[int, list[Any]]
"""A table's rows by the trial's id."""


class TrialReader(RDBStorage):
    """Optuna's storage."""

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        """Return the study's trials above an id and those of some ids, by their ids.

        Optuna has no public place for this; a test fails where it no longer asks here.

        Args:
            study_id: Optuna's id of the study.
            states: in which they are; None: in any.
            included_trial_ids: of trials that are asked for beside those above the bound.
            trial_id_greater_than: the bound; -1: all are above it.

        Raises:
            KeyError: there is no such study.
        """
        self.get_study_name_from_id(study_id)  # raises
        wanted = [trials.c.study_id == study_id]
        if trial_id_greater_than >= 0:
            above = trials.c.trial_id > trial_id_greater_than
            wanted.append(or_(above, trials.c.trial_id.in_(included_trial_ids)))
        if states is not None:
            wanted.append(trials.c.state.in_([s.name for s in TrialState if s in states]))
        with self.engine.connect() as connection:
            # The trials first: one that has ended by then has all of its rows, and they stay.
            found = connection.execute(
                select(trials).where(*wanted).order_by(trials.c.trial_id)
            ).all()
            if not found:
                return []
            rows = {table: _rows(connection, table, wanted) for table in _CHILDREN}
        distribution = cache(json_to_distribution)
        return [_trial(row, rows, distribution) for row in found]


def _rows(connection: Connection, table: Table[Any], wanted: list[ColumnElement[bool]]) -> _Rows:
    """Return the rows in ``table`` of the ``wanted`` trials."""
    (key,) = table.primary_key
    rows = connection.execute(
        select(table.c.trial_id, *(table.c[name] for name in _CHILDREN[table]))
        .join(trials, trials.c.trial_id == table.c.trial_id)
        .where(*wanted)
        .order_by(key)
    )
    by_trial: _Rows = defaultdict(list)
    for trial_id, *row in rows:
        by_trial[trial_id].append(row)
    return by_trial


def _trial(
    row: Row[Any], rows: dict[Table[Any], _Rows], distribution: Callable[[str], BaseDistribution]
) -> FrozenTrial:
    """Return the trial of ``row``, a row of Optuna's trials, and of its ``rows`` elsewhere."""
    values, params, user, system, reports = (rows[table][row.trial_id] for table in _CHILDREN)
    return FrozenTrial(
        trial_id=row.trial_id,
        number=row.number,
        state=TrialState[row.state],
        value=None,
        values=[stored_float(value, kind) for _, value, kind in sorted(values)] or None,
        datetime_start=row.datetime_start,
        datetime_complete=row.datetime_complete,
        params={name: distribution(kind).to_external_repr(number) for name, number, kind in params},
        distributions={name: distribution(kind) for name, _, kind in params},
        user_attrs={key: json.loads(text) for key, text in user},
        system_attrs={key: json.loads(text) for key, text in system},
        intermediate_values={step: stored_float(value, kind) for step, value, kind in reports},
    )
