"""One study as a dispatcher serves it: what runs next, what people want of it, when it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sft_tune.errors import SftTuneError, TrialError
from sft_tune.run.events import Notice, Notify, TrialEnded
from sft_tune.run.placement import Placement
from sft_tune.spec.study import StudySpec
from sft_tune.store.claims import LeaseLostError
from sft_tune.store.control import Wishes
from sft_tune.store.tables import PAUSED, STOPPED

FAILURES = ("crashed", "stalled", "out_of_memory")

ASKED_TO = "asked to"
"""Why a trial was saved and left, as its worker knows it."""


class Book(Protocol):
    """The database side of what a desk serves: a search (`Ledger`), or a confirmation of it."""

    def recover(self) -> None:
        """Take up what an earlier runner did not live to finish."""

    def next_placement(self) -> Placement | None:
        """Claim what is to be run next; None when there is nothing."""

    def repeated(self, placement: Placement) -> TrialEnded | None:
        """End ``placement`` without training where its result is known; None: it is not."""

    def exhausted(self) -> str | None:
        """Return why nothing new may start, in a word; None when the count decides."""

    def target_reached(self) -> bool:
        """Tell whether a value is there that ends the study."""

    def asked_for(self, placement: Placement) -> bool:
        """Tell whether a person asked for ``placement``: it trains whatever else is known."""

    def spent(self, placement: Placement, most: int) -> bool:
        """Tell whether ``placement``, whose worker or runner died, has had its attempts."""

    def begin(self, placement: Placement, device: str) -> Placement:
        """Note that an attempt begins."""

    def rungs(
        self, reached: Sequence[tuple[Placement, Mapping[str, Any]]]
    ) -> list[bool | LeaseLostError]:
        """Record a rung of each of several trials; return which go on, or that one was lost."""

    def faults(self, placement: Placement) -> tuple[str, ...]:
        """Return in few words each what is wrong so far with ``placement``, which runs."""

    def end(self, placement: Placement, outcome: Mapping[str, Any]) -> TrialEnded:
        """Note how ``placement`` ended."""

    def add_error(self, placement: Placement, error: str) -> None:
        """Keep ``error``."""

    def give_back(self, placement: Placement) -> None:
        """Let any runner take ``placement`` up again."""

    def wishes(self) -> Wishes:
        """Return what people want of the study."""

    def want(self, wanted: str | None) -> None:
        """Have the study paused or stopped by everyone who runs it; None: let it run."""

    def announce(self, slots: Sequence[str]) -> None:
        """Say for `status` that this runner lives."""

    def heartbeat(self) -> set[int]:
        """Renew this runner's leases; return the claims that it still holds."""

    def close(self, why: str | None) -> None:
        """Leave; ``why`` nothing is left to do, None when there may be."""


class Desk:
    """A study that is served; ``notify`` is told what happens in it."""

    def __init__(self, spec: StudySpec, ledger: Book, notify: Notify) -> None:
        """Serve the study of ``spec`` by ``ledger``."""
        self.spec = spec
        self.ledger = ledger
        self.notify = notify
        self.placed = 0
        self.dry = False
        """Whether `next` had nothing to give when it was last asked."""
        self._failures: list[str] = []
        self._said: str | None = None
        self.wishes = ledger.wishes()
        self.target_reached = ledger.target_reached()

    def refresh(self) -> Wishes:
        """Read again what is wanted of the study; after a pause, take it up anew."""
        self.target_reached = self.ledger.target_reached()
        before, self.wishes = self.wishes, self.ledger.wishes()
        if before.wanted is not None and self.wishes.wanted is None:
            self.ledger.recover()
        return self.wishes

    def wants_end(self, placement: Placement) -> bool:
        """Tell whether the running trial is to be saved and left: now, or for good."""
        return self.wishes.wanted is not None or self._ending(placement) is not None

    def _ending(self, placement: Placement) -> str | None:
        """Return why the trial is to end where it is; None: it is not."""
        if placement.claim.id in self.wishes.ending:
            return ASKED_TO
        if self.target_reached and not self.ledger.asked_for(placement):
            return "the target is reached"
        return None

    def next(self) -> Placement | None:
        """Return the next trial to train; those that need no training are ended here."""
        while self.wishes.wanted is None:
            placement = self.ledger.next_placement()
            self.dry = placement is None
            if placement is None:
                return None
            self.placed += 1
            most = self.spec.resources.max_attempts
            if placement.claim.taken_from and self.ledger.spent(placement, most):
                note = f"its runner died, {most} times without that it got any further"
                self.end(placement, {"reason": "crashed", "note": note, "seconds": 0.0}, slot=None)
                continue
            why = ASKED_TO if placement.claim.stop_requested else self._ending(placement)
            if why is not None:
                self.end(placement, _stopped({"note": f"{why}, before it went on"}), slot=None)
                continue
            repeated = self.ledger.repeated(placement)
            if repeated is None:
                return placement
            self.notify(repeated)
        return None

    def end(self, placement: Placement, outcome: Mapping[str, Any], slot: int | None) -> None:
        """Record how a trial ended.

        Raises:
            TrialError: after as many failures in a row as the budget admits.
        """
        ended = self.ledger.end(placement, outcome)
        if ended.leads:
            self.target_reached = self.ledger.target_reached()
        self.notify(replace(ended, slot=slot))
        if ended.reason not in FAILURES:
            self._failures.clear()
            return
        self._failures.append(f"trial {ended.number} {ended.reason}: {ended.note}")
        if len(self._failures) >= self.spec.budget.failures:
            raise TrialError(
                f"{len(self._failures)} trials in a row failed (budget.failures); the last: "
                f"{self._failures[-1]}; `sft-tune show {self.spec.name} {ended.number}` has the "
                "whole error; start again when it is mended"
            )

    def left(self, placement: Placement, outcome: Mapping[str, Any], slot: int) -> None:
        """Record that a trial was saved and left: given back, or ended where it was asked for."""
        why = self._ending(placement)
        if why is not None:
            note = outcome["note"].replace(ASKED_TO, why, 1)
            self.end(placement, _stopped({**outcome, "note": note}), slot)
            return
        self.ledger.give_back(placement)
        self.notify(Notice(f"trial {placement.number} saved at step {outcome['steps']}"))

    def over(self) -> str | None:
        """Return why nothing is left to do here, in a word; None while it is not so.

        It is not over while others run trials of it: one that they lose is ours to go on with.
        """
        wishes = self.refresh()
        if wishes.wanted == STOPPED or not wishes.exists:
            return "stopped"
        if wishes.wanted == PAUSED:
            self._say_once(
                f"paused; `sft-tune resume {self.spec.name}` lets it go on, Ctrl-C leaves"
            )
            return None
        if wishes.others:
            trials = "1 trial" if wishes.others == 1 else f"{wishes.others} trials"
            self._say_once(f"waiting for {trials} that other runners have; Ctrl-C leaves")
            return None
        # What was given back since `next` looked is ours again.
        return None if wishes.open else self.ledger.exhausted() or "trials"

    def _say_once(self, text: str) -> None:
        if self._said != text:
            self._said = text
            self.notify(Notice(text))


def _stopped(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outcome of a trial that ends where it is; the sampler learns from its rungs."""
    reached = outcome.get("value") is not None
    return {
        "seconds": 0.0,
        **outcome,
        "reason": "stopped",
        "state": "PRUNED" if reached else "FAIL",
    }


class Roster(Protocol):
    """The studies that a dispatcher serves."""

    def refresh(self, *, busy: bool) -> None:
        """Look again which there are; ``busy``: whether a trial runs here."""

    def desks(self, running: Mapping[Desk, int]) -> Sequence[Desk]:
        """Return them, the one that is to get the next free slot first.

        Args:
            running: how many trials of each run here.
        """

    def beat(self, slots: Sequence[str]) -> None:
        """Say that this runner lives, with ``slots``, and count the time of what it serves."""

    def over(self) -> str | None:
        """Return why to end, in a word, now that nothing runs here; None: wait."""

    def broken(self, desk: Desk, error: SftTuneError) -> None:
        """Take note that ``desk`` cannot go on; an error raised here ends the dispatcher."""


class OneStudy:
    """The roster of `start`: one study, until it is over."""

    def __init__(self, desk: Desk) -> None:
        """Serve ``desk``."""
        self._desk = desk

    def refresh(self, *, busy: bool) -> None:
        """Nothing changes here but wishes, which the dispatcher reads."""

    def desks(self, running: Mapping[Desk, int]) -> Sequence[Desk]:
        """Return the study."""
        return (self._desk,)

    def beat(self, slots: Sequence[str]) -> None:
        """Say that this runner lives; while others run the study, the time counts too."""
        self._desk.ledger.announce(slots)

    def over(self) -> str | None:
        """Return why the study is over."""
        return self._desk.over()

    def broken(self, desk: Desk, error: SftTuneError) -> None:
        """Raise the error: there is nothing else to serve."""
        raise error
