"""The rung that a trial has reported, while the verdict on it is on its way and it trains on."""

from __future__ import annotations

from typing import Protocol

from sft_tune.trial.outcome import Evaluation
from sft_tune.trial.resume import TrialState
from sft_tune.trial.rungs import Ending, after_rung
from sft_tune.trial.trainee import Trainee


class Verdict(Protocol):
    """Whether to go on after a rung; it is given when the rung is on record."""

    def poll(self) -> bool | None:
        """Return it; None while it is not there."""

    def wait(self) -> bool:
        """Return it when it is there."""


class LastRung:
    """The rung that was reported last."""

    def __init__(self) -> None:
        """Begin without any."""
        self._answer: bool | Verdict | None = None
        self._step = 0
        self._endings: dict[bool, Ending | None] = {}

    @property
    def is_settled(self) -> bool:
        """Whether the verdict was given, and no rung is without: what has been done may be kept."""
        return self._answer is None

    def report(
        self, answer: bool | Verdict, evaluation: Evaluation, trainee: Trainee, state: TrialState
    ) -> None:
        """Take in that ``evaluation`` was reported, and ``answer`` says whether to go on."""
        self._answer, self._step = answer, state.step
        self._endings = {
            go_on: after_rung(evaluation, trainee, state, go_on=go_on) for go_on in (True, False)
        }

    def ending(self, state: TrialState, *, wait: bool = False) -> Ending | None:
        """Return how the trial ends by the verdict; None: it goes on, or nothing is known yet.

        It ends where it was judged: its steps since then count for nothing, whenever the verdict
        came. The best weights are those of the rung, since there was no other in between.
        """
        answer = self._answer
        if answer is not None and not isinstance(answer, bool):
            answer = answer.wait() if wait else answer.poll()
        if answer is None:
            return None
        self._answer = None
        ending = self._endings[answer]
        if ending is not None:
            state.step = self._step
        return ending
