"""What a kind of target is: how it is read, checked, counted and stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from sft_tune.spec.data import DataSpec
from sft_tune.trial.data.examples import Examples
from sft_tune.trial.data.parts import Part

Labels = tuple[str, ...]
Stats = dict[str, Any]


class Found(NamedTuple):
    """The examples of a split, and the names of what a model has one output for."""

    part: Part
    labels: Labels


class Targets(Protocol):
    """How one kind of target is read, checked and counted."""

    def read(self, examples: Examples, data: DataSpec, where: str, labels: Labels | None) -> Found:
        """Return the examples that are used, with their targets.

        Args:
            examples: a whole split.
            data: the study file's section.
            where: what the split is called in messages.
            labels: those of train; None where this is train.

        Raises:
            DataError: for targets that are missing, are of another kind, or that train lacks.
        """

    def check(self, part: Part, labels: Labels, where: str, remedy: str) -> None:
        """Check that ``part`` is enough to train or to evaluate on.

        Raises:
            DataError: where it is not.
        """

    def check_train(self, part: Part, labels: Labels, where: str) -> None:
        """Check that a limit has left something of everything in the training split.

        Raises:
            DataError: with what is missing.
        """

    def counts(self, part: Part, labels: Labels) -> dict[str, int]:
        """Return how many examples there are of each label; nothing where that has no meaning."""

    def finish(
        self, parts: Mapping[str, Part], stats: Stats | None
    ) -> tuple[dict[str, Part], Stats]:
        """Return ``parts`` (by split) with the targets as they are stored, and their statistics.

        Args:
            parts: the split ``train`` is among them, or ``stats`` is given.
            stats: of train, as an earlier call has returned them.
        """
