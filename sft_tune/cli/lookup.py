"""What several commands look up in the database, and say when it is not there."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from sft_tune.errors import StudyNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sft_tune.spec.space import Value
    from sft_tune.store.database import Database
    from sft_tune.store.rows import StudyRow, TrialRow
    from sft_tune.view.finalists import Standings


def one_trial(db: Database, study: str, number: int) -> TrialRow:
    """Return trial ``number`` of ``study``.

    Raises:
        StudyNotFoundError: there is no such study or trial; the message says which there are.
    """
    from sft_tune.store.reads import trial_rows

    rows = trial_rows(db, study, number)
    if not rows:
        numbers = [row.number for row in trial_rows(db, study)]
        there = f"they are {numbers[0]} to {numbers[-1]}" if numbers else "it has none yet"
        raise StudyNotFoundError(f"study {study!r} has no trial {number}; {there}")
    return rows[0]


def best_trial(db: Database, study: str) -> TrialRow:
    """Return the best completed trial of ``study``.

    Raises:
        StudyNotFoundError: there is no such study, or none of its trials has completed.
    """
    from sft_tune.store.reads import best_row

    row = best_row(db, study)
    if row is None:
        raise StudyNotFoundError(
            f"study {study!r} has no completed trial yet; `sft-tune status {study}` says how far "
            "it is"
        )
    return row


def living(study: StudyRow) -> StudyRow:
    """Return the study without the leases of processes that are known to be dead.

    A lease lives on for a minute; of a runner of this machine it is known sooner.
    """
    from sft_tune.run.owner import is_dead

    leases = tuple((owner, until) for owner, until in study.leases if not is_dead(owner))
    last = max((until for _, until in leases), default=None)
    return study._replace(leases=leases, lease_until=last)


def living_trials(study: StudyRow, rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Return ``rows``, trials of the `living` study, without leases that it does not have."""
    owners = {owner for owner, _ in study.leases}
    return [
        row if row.lease_owner in owners else row._replace(lease_owner=None, lease_expires=None)
        for row in rows
    ]


def default_point(db: Database, study: StudyRow) -> dict[str, Value] | None:
    """Return the default point of the study's space; None for a study that is Optuna's alone.

    It is the first trial's: to load the study file's models would take longer than all the rest.
    """
    if not study.managed:
        return None
    from sft_tune.store.standing import default_row

    first = default_row(db, study.name)
    if first is not None:
        return first.params
    from sft_tune.spec.config import default_params
    from sft_tune.store.records import find_study

    return default_params(find_study(db, study.name).spec)


def standings_of(db: Database, study: str) -> Standings | None:
    """Return how the finalists of ``study`` stand; None before any run has ended with a value."""
    from sft_tune.store.finalist_rows import finalist_rows

    runs = finalist_rows(db, study)
    if not runs:
        return None
    # Statistics import numpy, which a study without finalists need not wait for.
    from sft_tune.store.reads import trial_rows
    from sft_tune.store.records import find_study
    from sft_tune.view.finalists import standings

    return standings(find_study(db, study).spec, trial_rows(db, study), runs)


def options_of(db: Database) -> str:
    """Return what a command needs to find ``db`` again: nothing where it is the usual one."""
    from sft_tune.store.urls import redact, resolve_url
    from sft_tune.view import words

    if db.url == resolve_url(None):
        return ""
    file = db.url.removeprefix("sqlite:///")
    is_file = file != db.url and file.endswith(".db")
    return f" --storage {words.short_path(file) if is_file else shlex.quote(redact(db.url))}"
