"""Targets: from what a source holds to arrays, one reader for each kind of target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sft_tune.spec.study import DataSpec, Task
from sft_tune.trial.data.examples import Examples
from sft_tune.trial.data.labels import (
    check_agreement,
    check_all_present,
    check_enough,
    class_indices,
    counts_by_class,
    in_label_order,
    keep_classes,
    name_labels,
)
from sft_tune.trial.data.parts import Part

Labels = tuple[str, ...]
Stats = dict[str, Any]
_REMEDY = "Mend the source, data.label_column or data.classes."


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


class ClassTargets:
    """One class of several: int64 [n], the index of its name."""

    def read(self, examples: Examples, data: DataSpec, where: str, labels: Labels | None) -> Found:
        """Return the examples of the wanted classes."""
        names = name_labels(examples, where)
        if data.classes is not None and labels is not None:
            # Only train has to have every one of the classes that the study file names.
            rows = np.flatnonzero([name in labels for name in names])
        else:
            rows = keep_classes(names, data.classes, where)
        kept = [names[i] for i in rows]
        if labels is None:
            labels = in_label_order(kept)
        else:
            check_agreement(kept, labels, where)
        targets = class_indices(kept, labels)
        check_enough(targets, labels, where, _REMEDY)
        return Found(Part(examples, rows, targets, targets), labels)

    def check(self, part: Part, labels: Labels, where: str, remedy: str) -> None:
        """Check that there are examples of two classes."""
        check_enough(part.targets, labels, where, remedy)

    def check_train(self, part: Part, labels: Labels, where: str) -> None:
        """Check that there are examples of every class."""
        check_all_present(part.targets, labels, where)

    def counts(self, part: Part, labels: Labels) -> dict[str, int]:
        """Return the number of examples of each class."""
        return counts_by_class(part.targets, labels)

    def finish(
        self, parts: Mapping[str, Part], stats: Stats | None
    ) -> tuple[dict[str, Part], Stats]:
        """Return ``parts`` as they are."""
        return dict(parts), {}


def targets_of(task: Task, data: DataSpec) -> Targets:
    """Return the reader of the targets of ``task``."""
    return TARGETS[task]


TARGETS: dict[Task, Targets] = {
    "image-classification": ClassTargets(),
    "text-classification": ClassTargets(),
}


def strata_of(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return one stratum for all of ``values``: a split of them is not stratified."""
    return np.zeros(len(values), dtype=np.int64)
