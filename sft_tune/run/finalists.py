"""The database side of one runner of a confirmation: finalists over fresh seeds."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sft_tune.run.cleaning import Cleaner
from sft_tune.run.events import TrialEnded
from sft_tune.run.owner import LEASE_SECONDS, announce, is_dead, owner_name
from sft_tune.run.placement import Placement, placed
from sft_tune.run.retention import trial_place
from sft_tune.store import claims, control, finalists, runners
from sft_tune.store.claims import LeaseLostError
from sft_tune.store.control import Wishes
from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord
from sft_tune.store.retry import retrying
from sft_tune.store.tables import finalists as table
from sft_tune.trial.files import RemoteFiles, clear_resume
from sft_tune.trial.paths import TrialPaths


class FinalistLedger:
    """The `Book` of a confirmation: its runs are of the search's trials, and none is pruned."""

    def __init__(
        self,
        db: Database,
        record: StudyRecord,
        ids: Sequence[int],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep the confirmation runs ``ids`` of the study ``record`` of ``db``."""
        self._db = db
        self._study = record
        self._ids = tuple(ids)
        self._clock = clock
        self._owner = owner_name()
        self._cleaner = Cleaner()
        # A search that was stopped stays so for those who serve it; it is no word to us.
        self._ignored = self._read_wishes().wanted

    def next_placement(self) -> Placement | None:
        """Claim the next run: one that waits, or that another runner has left."""
        claim = retrying(
            lambda: finalists.claim_run(
                self._db,
                self._study.id,
                self._ids,
                owner=self._owner,
                now=self._clock(),
                lease_seconds=LEASE_SECONDS,
                is_dead=is_dead,
            )
        )
        if claim is None or claim.config is None or claim.number is None:
            return None
        if claim.taken_from and claim.attempts:
            claims.add_error(self._db, claim, f"its runner {claim.taken_from} was lost")
        number, seed = claim.number, claim.config.seed
        return placed(
            *(claim, number, claim.params or {}, claim.config),
            artifacts=self._study.artifacts,
            root=self._study.root,
            where=lambda base: run_place(base, number, seed),
            with_test=True,
        )

    def repeated(self, placement: Placement) -> TrialEnded | None:
        """Return None: every run is one of its own."""
        return None

    def exhausted(self) -> str | None:
        """Return None: the runs that were asked for are all there are."""
        return None

    def target_reached(self) -> bool:
        """Return False: the runs are compared, whatever value one has."""
        return False

    def asked_for(self, placement: Placement) -> bool:
        """Return True: all were."""
        return True

    def spent(self, placement: Placement, most: int) -> bool:
        """Tell whether the run, which died, has had ``most`` attempts."""
        return placement.attempt >= most

    def begin(self, placement: Placement, device: str) -> Placement:
        """Note that the run is on ``device`` now, in one more attempt."""
        claim = finalists.begin(
            self._db, placement.claim, device=device, host=platform.node(), now=self._clock()
        )
        return replace(placement, claim=claim)

    def rungs(
        self, reached: Sequence[tuple[Placement, Mapping[str, Any]]]
    ) -> list[bool | LeaseLostError]:
        """Record how far each of several runs is; they always go on."""
        verdicts: list[bool | LeaseLostError] = []
        for placement, evaluation in reached:
            value = evaluation["metrics"][self._study.metric]
            try:
                finalists.reach(self._db, placement.claim, evaluation["progress"], value)
                verdicts.append(True)
            except LeaseLostError as error:
                verdicts.append(error)
        return verdicts

    def faults(self, placement: Placement) -> tuple[str, ...]:
        """Return nothing: what is wrong with a configuration its trial has said."""
        return ()

    def end(self, placement: Placement, outcome: Mapping[str, Any]) -> TrialEnded:
        """Note how the run ended; its weights go: the trial's own are kept as others are."""
        finalists.end(self._db, placement.claim, outcome, now=self._clock())
        paths = TrialPaths(placement.folder)
        paths.clear_resume()
        paths.best.unlink(missing_ok=True)
        if (url := placement.url) is not None:
            self._cleaner.do(lambda: _clear(RemoteFiles(url), paths.best.name))
        held_out = (outcome.get("test_metrics") or {}).get(self._study.metric)
        told = [str(outcome.get("note") or "")]
        told += [] if held_out is None else [f"{self._study.metric} {held_out:.4f} on test"]
        return TrialEnded(
            number=placement.number,
            slot=None,
            reason=outcome["reason"],
            value=outcome.get("value"),
            seconds=outcome.get("seconds") or 0.0,
            note="; ".join(text for text in told if text),
            params=placement.params,
        )

    def add_error(self, placement: Placement, error: str) -> None:
        """Keep ``error`` with the run, after those of earlier attempts."""
        claims.add_error(self._db, placement.claim, error)

    def give_back(self, placement: Placement) -> None:
        """Let any runner take the run up again, from its last checkpoint."""
        claims.release(self._db, placement.claim)

    def wishes(self) -> Wishes:
        """Return what people want of the study since this runner began."""
        wishes = self._read_wishes()
        return replace(wishes, wanted=None) if wishes.wanted == self._ignored else wishes

    def want(self, wanted: str | None) -> None:
        """Have the study paused or stopped by everyone who runs it; None: let it run."""
        control.want(self._db, self._study.id, wanted)

    def announce(self, slots: Sequence[str]) -> None:
        """Say for `status` that this runner lives, and what its slots are called."""
        engine = self._study.spec.resources.engine
        announce(self._db, self._owner, engine=engine, slots=slots, now=self._clock())

    def heartbeat(self) -> set[int]:
        """Renew this runner's leases; return the claims that it still holds."""
        now = self._clock()
        return claims.renew(self._db, self._owner, now, LEASE_SECONDS, table)

    def recover(self) -> None:
        """Do nothing: nobody else is to be told of these runs."""

    def close(self, why: str | None) -> None:
        """Leave: this runner serves no longer."""
        runners.leave(self._db, self._owner)
        self._cleaner.wait()

    def _read_wishes(self) -> Wishes:
        study, owner = self._study.id, self._owner
        return retrying(lambda: finalists.wishes(self._db, study, self._ids, owner, self._clock()))


def run_place(artifacts: str, number: int, seed: int) -> str:
    """Return where the files of the confirmation run of trial ``number`` under ``seed`` belong."""
    return f"{trial_place(artifacts, number)}/seed-{seed}"


def _clear(files: RemoteFiles, best: str) -> None:
    clear_resume(files)
    files.remove(best)
