"""What one runner writes into the study database: claims, rungs and ends.

Written in such an order that a crash between any two writes is mended by the next runner: a place
is claimed before its trial is opened, an end is noted before Optuna is told of it.
"""

from __future__ import annotations

import functools
import itertools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sft_tune.run.events import TrialEnded
from sft_tune.run.faults import FaultFinder
from sft_tune.run.leader import Leader
from sft_tune.run.owner import LEASE_SECONDS, announce, is_dead, owner_name
from sft_tune.run.placement import Placement, placed
from sft_tune.run.retention import trial_place
from sft_tune.run.searcher import Point, Searcher, has_rungs
from sft_tune.run.trial_files import TrialFiles
from sft_tune.spec.config import assemble
from sft_tune.spec.faults import to_flags
from sft_tune.spec.plan import Plan
from sft_tune.spec.study import StudySpec
from sft_tune.store import claims, control, runners, studies
from sft_tune.store.attributes import trial_attributes
from sft_tune.store.claims import Claim, EndedTrial, LeaseLostError
from sft_tune.store.control import Wishes
from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord
from sft_tune.store.retry import retrying


class Ledger:
    """The database side of one runner of one study."""

    def __init__(
        self,
        db: Database,
        record: StudyRecord,
        spec: StudySpec,
        plan: Plan,
        searcher: Searcher,
        artifacts: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep the study ``record`` of ``db``.

        Args:
            db: the study database.
            record: the study's row.
            spec: what its file says now.
            plan: of ``spec``.
            searcher: the study's Optuna side.
            artifacts: where its trials keep their files, a folder or a URL.
            clock: gives seconds since the epoch.
        """
        self._db = db
        self._study = record
        self._spec = spec
        self._searcher = searcher
        self._artifacts = artifacts
        self._clock = clock
        self._owner = owner_name()
        self._limit = plan.limit(spec.budget)
        self._asked_for = len(plan.enqueued)
        maximize = spec.direction == "maximize"
        keep = spec.resources.keep_checkpoints
        self._files = TrialFiles(db, record, artifacts, keep, maximize=maximize)
        self._faults = FaultFinder(db, spec)
        self._leader = Leader(db, spec.name, maximize=maximize)
        self._points: dict[int, Point] = {}
        """Optuna's side of the trials that this runner has claimed, by the id of their claim."""

    def recover(self) -> None:
        """Take up the study: tell Optuna the ends that an earlier runner did not live to tell.

        The time since the study was last run counts for nothing, unless others run it now.
        """
        owners = claims.live_owners(self._db, self._study.id, self._clock())
        shared = any(not is_dead(owner) for owner in owners)
        self._count_time(at_most=LEASE_SECONDS if shared else 0.0)
        for ended in claims.untold(self._db, self._study.id):
            self._tell(ended)
        self._files.sweep()

    def next_placement(self) -> Placement | None:
        """Claim what is to be run next: a trial left by another runner, or a new one.

        Returns None when no trial may start: the budget is used, or the target is reached. What
        people ask for beside the search runs on top of both.
        """
        claim = retrying(
            lambda: claims.claim_abandoned(
                self._db, self._study.id, is_dead=is_dead, **self._lease()
            )
        )
        if claim is not None and claim.taken_from and claim.attempts:
            claims.add_error(self._db, claim, f"its runner {claim.taken_from} was lost")
        if claim is not None:
            return self._open(claim)
        asked_only = self.exhausted() is not None
        claim = claims.claim_new(
            self._db, self._study.id, limit=self._limit, asked_only=asked_only, **self._lease()
        )
        return None if claim is None else self._open(claim, fresh=True)

    def exhausted(self) -> str | None:
        """Return why no new trial may start, in a word; None when the count of trials decides."""
        budget = self._spec.budget
        if self.target_reached():
            return "target"
        if budget.hours is not None and self._count_time() >= budget.hours * 3600:
            return "hours"
        return None

    def target_reached(self) -> bool:
        """Tell whether the best value, whoever found it, is as good as the target."""
        target = self._spec.budget.target
        return target is not None and self._leader.reached(target)

    def asked_for(self, placement: Placement) -> bool:
        """Tell whether it is the default configuration, or one that somebody asked for."""
        claim = placement.claim
        return claim.asked is not None or claim.place < self._asked_for

    def repeated(self, placement: Placement) -> TrialEnded | None:
        """End ``placement`` with the result of an equal configuration, where one is finished."""
        same = placement.config.fingerprint()
        twin = retrying(lambda: claims.find_duplicate(self._db, self._study.id, same))
        if twin is None:
            return None
        begun = self.begin(placement, "none")
        if twin.last_progress is not None and twin.last_value is not None:
            # Optuna takes the last report of a pruned trial for its value.
            point = self._points[begun.claim.id]
            self._searcher.note([(point, twin.last_progress, twin.last_value)])
        outcome = {
            "reason": "duplicate",
            "state": twin.state,
            "value": twin.value,
            "metrics": twin.metrics,
            "best_progress": twin.best_progress,
            "steps": 0,
            "horizon": twin.horizon,
            "seconds": 0.0,
            "note": f"the same configuration as trial {twin.number}, whose result it takes",
        }
        return self.end(begun, outcome, duplicate_of=twin.number)

    def spent(self, placement: Placement, most: int) -> bool:
        """Tell whether the trial, which died, has had ``most`` attempts that got no further."""
        claim = placement.claim
        return claim.stuck >= most and not claims.has_advanced(self._db, claim)

    def begin(self, placement: Placement, device: str) -> Placement:
        """Note that ``placement`` runs on ``device`` now, in one more attempt."""
        claim = claims.begin(
            self._db,
            placement.claim,
            config=placement.config,
            params=placement.params,
            device=device,
            host=platform.node(),
            now=self._clock(),
        )
        return replace(placement, claim=claim, kept_from=self._files.kept_from())

    def rungs(
        self, reached: Sequence[tuple[Placement, Mapping[str, Any]]]
    ) -> list[bool | LeaseLostError]:
        """Record a rung of each of several trials at once; return which of them go on.

        For those that another runner has now it is the error that says so.
        """
        begun = [(placement.claim, evaluation) for placement, evaluation in reached]
        lost = claims.record_evaluations(self._db, begun)
        ours = [one for one in reached if one[0].claim.id not in lost]
        reports = []
        for placement, evaluation in ours:
            self._faults.add(placement.number, evaluation)
            value = evaluation["metrics"][self._spec.objective.metric]
            reports.append((self._points[placement.claim.id], evaluation["progress"], value))
        retrying(lambda: self._searcher.note(reports))
        verdicts: dict[int, bool | LeaseLostError] = {**lost}
        for (placement, _), (point, progress, _) in zip(ours, reports, strict=True):
            prune = retrying(functools.partial(self._searcher.prunes, point, progress))
            # The default configuration and those asked for are what the study compares itself with.
            verdicts[placement.claim.id] = not prune or self.asked_for(placement)
        return [verdicts[placement.claim.id] for placement, _ in reached]

    def end(
        self,
        placement: Placement,
        outcome: Mapping[str, Any],
        *,
        duplicate_of: int | None = None,
    ) -> TrialEnded:
        """Note the end of ``placement``, tell Optuna, and drop checkpoints that lost their rank."""
        if outcome["reason"] == "stopped" and has_rungs(self._points[placement.claim.id]):
            outcome = {**outcome, "state": "PRUNED"}  # the sampler learns from them
        faults = [] if duplicate_of is not None else self._faults.end(placement.number, outcome)
        if faults:
            flags = {**(outcome.get("flags") or {}), "faults": to_flags(faults)}
            outcome = {**outcome, "flags": flags}
        ended = claims.end(
            self._db, placement.claim, outcome, duplicate_of=duplicate_of, now=self._clock()
        )
        self._count_time()
        self._tell(ended)
        # Only now: until the end is on record, it is what the trial goes on from.
        self._files.clear_resume(placement)
        may_lead = ended.state == "COMPLETE" and duplicate_of is None
        leads = self._leader.takes(placement.number, ended.value if may_lead else None)
        if duplicate_of is None:
            self._files.drop_surplus()
        return TrialEnded(
            number=placement.number,
            slot=None,
            reason=ended.reason,
            value=ended.value,
            seconds=ended.seconds or 0.0,
            note=ended.note or "",
            leads=leads,
            params=placement.params,
            faults=tuple(fault.short for fault in faults),
        )

    def faults(self, placement: Placement) -> tuple[str, ...]:
        """Return in few words each what is wrong so far with ``placement``, which runs."""
        return tuple(fault.short for fault in self._faults.so_far(placement.number))

    def add_error(self, placement: Placement, error: str) -> None:
        """Keep ``error`` with the trial, after those of earlier attempts."""
        claims.add_error(self._db, placement.claim, error)

    def give_back(self, placement: Placement) -> None:
        """Let any runner take ``placement`` up again, from its last checkpoint."""
        claims.release(self._db, placement.claim)
        self._count_time()

    def wishes(self) -> Wishes:
        """Return what people want of the study."""
        study, owner = self._study.id, self._owner
        return retrying(lambda: control.wishes(self._db, study, owner, self._clock()))

    def want(self, wanted: str | None) -> None:
        """Have the study paused or stopped by everyone who runs it; None: let it run."""
        control.want(self._db, self._study.id, wanted)

    def announce(self, slots: Sequence[str]) -> None:
        """Say for `status` that this runner lives, and what its slots are called."""
        engine = self._spec.resources.engine
        announce(self._db, self._owner, engine=engine, slots=slots, now=self._clock())

    def heartbeat(self) -> set[int]:
        """Renew this runner's leases and count the time; return the claims that it still holds."""
        self._count_time()
        return claims.renew(self._db, self._owner, self._clock(), LEASE_SECONDS)

    def close(self, why: str | None) -> None:
        """Note why the search ended; None: it was stopped and may be resumed."""
        if why is None:
            self._count_time()  # Else the last trial's end has: nothing ran since.
        runners.leave(self._db, self._owner)
        studies.set_ended(self._db, self._study.id, why)
        self._files.wait()

    def _tell(self, ended: EndedTrial) -> None:
        if ended.optuna_trial_id is not None:
            known, attributes = ended.optuna_trial_id, trial_attributes(ended)
            retrying(lambda: self._searcher.tell(known, ended.state, ended.value, attributes))
        claims.mark_told(self._db, ended)

    def _lease(self) -> dict[str, Any]:
        return {"owner": self._owner, "now": self._clock(), "lease_seconds": LEASE_SECONDS}

    def _open(self, claim: Claim, *, fresh: bool = False) -> Placement:
        if claim.optuna_trial_id is not None:
            known = claim.optuna_trial_id
            point = retrying(lambda: self._searcher.adopt(known, claim.ordinal))
        else:
            tries = itertools.count()  # what one made whose answer was lost, the next finds
            point = retrying(lambda: self._searcher.open(claim, fresh=fresh and next(tries) == 0))
            claim = claims.link(self._db, claim, point.optuna_id, point.number)
        config = assemble(self._spec, point.params, point.number)
        self._points[claim.id] = point
        return placed(
            *(claim, point.number, point.params, config),
            artifacts=self._artifacts,
            root=self._study.root,
            where=lambda base: trial_place(base, point.number),
        )

    def _count_time(self, at_most: float = LEASE_SECONDS) -> float:
        """Count the time since anyone last did; return the study's total in seconds."""
        return claims.add_active_time(self._db, self._study.id, self._clock(), at_most=at_most)
