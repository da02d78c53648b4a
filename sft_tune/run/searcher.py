"""The Optuna study as the dispatcher uses it: open a trial, report a rung, tell the end."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage, get_storage
from optuna.trial import Trial, TrialState, create_trial

from sft_tune.search.distributions import draw
from sft_tune.search.pruners import make_pruner, may_prune
from sft_tune.search.samplers import make_sampler, search_space
from sft_tune.spec.plan import Plan
from sft_tune.spec.space import Value
from sft_tune.spec.study import StudySpec
from sft_tune.store.claims import Claim
from sft_tune.store.optuna_storage import add_reports, set_trial_attributes
from sft_tune.store.retry import retrying

ORDINAL = "sft:ordinal"
PRUNED_AT = "sft:pruned_at"
"""The system attribute with the progress at which the pruner has said to end a trial."""


@dataclass(frozen=True)
class Point:
    """A trial that Optuna has opened, and where in the space it lies."""

    trial: Trial
    optuna_id: int
    number: int
    params: dict[str, Value]


class Searcher:
    """One Optuna study with the sampler, pruner and plan of a study file."""

    def __init__(
        self,
        spec: StudySpec,
        plan: Plan,
        storage: RDBStorage,
        fixed_cost: float = 0.0,
        costs: Mapping[str, float] | None = None,
    ) -> None:
        """Load the study named ``spec.name`` from ``storage``; see `make_sampler`."""
        self._spec = spec
        self._fixed_cost = fixed_cost
        self._costs = costs
        self._plan = plan
        self._database = storage
        self._common = search_space()
        self._judged: dict[int, int] = {}
        """Where the pruner was last asked of a trial, in percent, by Optuna's id."""
        self._pruned: dict[int, int] = {}
        """Where it has said to end one: whoever died before it heard is told again."""
        self._storage = get_storage(storage)
        self._study = optuna.load_study(
            study_name=spec.name, storage=self._storage, pruner=make_pruner(spec.pruner)
        )
        self._study_id = self._storage.get_study_id_from_name(spec.name)

    def open(self, claim: Claim, *, fresh: bool = False) -> Point:
        """Open a trial for the claimed ticket, or find the one that a dead runner opened for it.

        The row is born with its ticket, so a runner that dies right after leaves a trial that
        the next one finds. Of a ``fresh`` ticket, which nobody else has had, there is none.
        """
        known = None if fresh else self._find(claim.ordinal)
        return self.adopt(known or self._create(claim), claim.ordinal)

    def _create(self, claim: Claim) -> int:
        fixed = self._plan.fixed(claim.place) if claim.asked is None else claim.asked
        born = create_trial(
            state=TrialState.RUNNING,
            user_attrs={ORDINAL: claim.ordinal},
            system_attrs={} if fixed is None else {"fixed_params": fixed},
        )
        return self._storage.create_new_trial(self._study_id, born)

    def _find(self, ordinal: int) -> int | None:
        for trial in self._storage.get_all_trials(
            self._study_id, deepcopy=False, states=(TrialState.RUNNING,)
        ):
            if trial.user_attrs.get(ORDINAL) == ordinal:
                return trial._trial_id
        return None

    def adopt(self, optuna_id: int, ordinal: int) -> Point:
        """Return the running trial ``optuna_id``, its missing parameters drawn."""
        self._study.sampler = make_sampler(
            self._spec, ordinal, self._fixed_cost, self._common, self._costs
        )
        trial = Trial(self._study, optuna_id)
        params = draw(trial, self._spec.space)
        pruned_at = trial._cached_frozen_trial.system_attrs.get(PRUNED_AT)
        if pruned_at is not None:
            self._pruned[optuna_id] = pruned_at
        return Point(trial, optuna_id, trial.number, params)

    def note(self, reports: Sequence[tuple[Point, int, float]]) -> None:
        """Report the objective of several trials at once.

        A trial that was taken over reports some rungs again; Optuna keeps the first report.

        Args:
            reports: trial, progress in percent, value.
        """
        new = [
            (point.optuna_id, progress, float(value))
            for point, progress, value in reports
            if progress not in _reported(point)
        ]
        add_reports(self._database, new)
        for point, progress, value in reports:
            _reported(point).setdefault(progress, float(value))

    def prunes(self, point: Point, progress: int) -> bool:
        """Tell whether to end the trial, whose objective at ``progress`` percent is noted.

        It is kept where a trial is to end: its runner may die before the worker has heard, and
        asked once more, successive halving lets it pass a rung that it was judged at.
        """
        pruned_at = self._pruned.get(point.optuna_id)
        if pruned_at is not None:
            return progress >= pruned_at
        # Asked, Optuna reads the trial from the database first, whatever the pruner.
        if not may_prune(self._spec.pruner, self._judged.get(point.optuna_id, 0), progress):
            return False
        answer = point.trial.should_prune()
        if answer:
            self._pruned[point.optuna_id] = progress
            # Another runner may have taken the trial over, and ended it.
            with contextlib.suppress(UpdateFinishedTrialError):
                retrying(functools.partial(self._note_pruned, point.optuna_id, progress))
        self._judged[point.optuna_id] = progress
        return answer

    def _note_pruned(self, optuna_id: int, progress: int) -> None:
        self._storage.set_trial_system_attr(optuna_id, PRUNED_AT, progress)

    def tell(
        self, optuna_id: int, state: str, value: float | None, attributes: Mapping[str, Any]
    ) -> None:
        """Tell Optuna that a trial ended, with ``attributes`` for its user attributes.

        A trial that was told already (its runner died before it could note so) stays as it is,
        and so does one that its living runner tells at this moment, by the same record.

        Args:
            optuna_id: the trial.
            state: COMPLETE, PRUNED or FAIL.
            value: the objective; only COMPLETE trials have one.
            attributes: JSON-able values by name.
        """
        if self._storage.get_trial(optuna_id).state.is_finished():
            return
        with contextlib.suppress(UpdateFinishedTrialError):
            set_trial_attributes(self._database, optuna_id, attributes)
            self._study.tell(
                self._storage.get_trial_number_from_id(optuna_id),
                value if state == "COMPLETE" else None,
                state=TrialState[state],
                skip_if_finished=True,
            )


def has_rungs(point: Point) -> bool:
    """Tell whether the trial has reported any."""
    return bool(_reported(point))


def _reported(point: Point) -> dict[int, float]:
    """Return what Optuna's trial knows of its reports: what `Trial.report` adds to."""
    known: dict[int, float] = point.trial._cached_frozen_trial.intermediate_values
    return known
