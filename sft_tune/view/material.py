"""Everything that plots and the report are made of, read from the database once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sft_tune.errors import StudyNotFoundError
from sft_tune.spec.config import default_params
from sft_tune.spec.space import Parameter, Value
from sft_tune.spec.study import StudySpec
from sft_tune.store.database import Database
from sft_tune.store.finalist_rows import FinalistRow, finalist_rows
from sft_tune.store.foreign_space import foreign_space
from sft_tune.store.importances import Importances, param_importances
from sft_tune.store.reads import evaluation_rows, study_row, trial_rows
from sft_tune.store.records import StudyRecord, find_study
from sft_tune.store.rows import EvaluationRow, StudyRow, TrialRow
from sft_tune.view.foreign_spec import spec_of

NOT_READ = Importances((), 0, missing="not computed")


class Material(NamedTuple):
    """A study, whole.

    Attributes:
        study: the study at a glance.
        trials: its trials, by number.
        rungs: what was measured of each on its way, by trial and progress.
        importances: of its hyperparameters.
        record: the study as registered, its file included; None for one that is Optuna's alone.
        now: when it was read, in seconds since 1970.
        runs: its confirmation runs.
        found_space: of a study that is Optuna's alone, what its trials say that it searched.
        seen: hyperparameters that are seen to matter (see `evidence.seen_to_matter`); computed
            with ``importances``.
    """

    study: StudyRow
    trials: Sequence[TrialRow]
    rungs: Sequence[EvaluationRow]
    importances: Importances
    record: StudyRecord | None
    now: float
    runs: Sequence[FinalistRow] = ()
    found_space: Mapping[str, Parameter] = MappingProxyType({})
    seen: tuple[str, ...] = ()

    @property
    def spec(self) -> StudySpec:
        """The study file; of a study that is Optuna's alone, what it would be (for reading)."""
        if self.record is not None:
            return self.record.spec
        return spec_of(self.study, self.found_space)

    @property
    def metric(self) -> str:
        """What the objective is called."""
        return self.study.metric or "value"

    @property
    def maximize(self) -> bool:
        """Whether more of the objective is better."""
        return self.study.direction == "maximize"

    @property
    def space(self) -> Mapping[str, Parameter]:
        """What is searched, so far as it is known."""
        return self.found_space if self.record is None else self.record.spec.space

    @property
    def default(self) -> dict[str, Value] | None:
        """The default point of the space; None where it is not known."""
        return None if self.record is None else default_params(self.record.spec)

    @property
    def best(self) -> TrialRow | None:
        """The completed trial with the best value, of equals the first; None without one."""
        done = [row for row in self.trials if row.state == "COMPLETE" and is_number(row.value)]
        sign = -1.0 if self.maximize else 1.0
        return min(done, key=lambda row: (sign * (row.value or 0.0), row.number), default=None)

    @property
    def default_trial(self) -> TrialRow | None:
        """The trial of the default configuration that completed; None without one."""
        default = self.default
        if default is None:
            return None
        done = (row for row in self.trials if row.state == "COMPLETE" and is_number(row.value))
        return next((row for row in done if row.params == default), None)

    @property
    def examples(self) -> int | None:
        """How many validation examples the values are of; None where it is not known."""
        facts: dict[str, Any] = {} if self.record is None else self.record.facts
        return (facts.get("examples") or {}).get("validation")


def gather(db: Database, name: str, now: float, *, importances: bool = True) -> Material:
    """Return the study ``name`` as it stands.

    Args:
        db: the database.
        name: the study's.
        now: seconds since 1970.
        importances: compute them too; they take Optuna and a moment.

    Raises:
        StudyNotFoundError: there is no such study; the message names those there are.
    """
    study = study_row(db, name)
    found = param_importances(db, name) if importances else NOT_READ
    record = _record(db, name)
    material = Material(
        study=study,
        trials=trial_rows(db, name),
        rungs=evaluation_rows(db, name),
        importances=found,
        record=record,
        now=now,
        runs=finalist_rows(db, name),
        found_space=foreign_space(db, name) if record is None else MappingProxyType({}),
    )
    if not importances:
        return material
    # Statistics import numpy, which a look at one trial need not wait for.
    from sft_tune.view import evidence

    found_in = evidence.gather(material.spec, material.trials, material.rungs)
    return material._replace(seen=evidence.seen_to_matter(found_in))


def _record(db: Database, name: str) -> StudyRecord | None:
    try:
        return find_study(db, name)
    except StudyNotFoundError:
        return None


def is_number(value: float | None) -> bool:
    """Tell whether ``value`` is there and finite."""
    return value is not None and value - value == 0
