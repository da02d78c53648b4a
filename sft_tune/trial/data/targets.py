"""Targets: from what a source holds to arrays, one reader for each kind of target."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sft_tune.spec.data import DataSpec
from sft_tune.spec.tasks import Task
from sft_tune.trial.data.boxes import BoxTargets
from sft_tune.trial.data.completions import CompletionTargets
from sft_tune.trial.data.examples import Examples
from sft_tune.trial.data.label_sets import LabelSetTargets
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
from sft_tune.trial.data.masks import MaskTargets
from sft_tune.trial.data.numbers import NumberTargets
from sft_tune.trial.data.parts import Part
from sft_tune.trial.data.tags import TagTargets
from sft_tune.trial.data.target_kinds import Found, Labels, Stats, Targets

_REMEDY = "Mend the source, data.label_column or data.classes."


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
    """Return the reader of the targets of ``task`` as ``data`` has them."""
    return LabelSetTargets() if data.multi_label else TARGETS[task]


TARGETS: dict[Task, Targets] = {
    "audio-classification": ClassTargets(),
    "image-classification": ClassTargets(),
    "text-classification": ClassTargets(),
    "image-regression": NumberTargets(),
    "text-regression": NumberTargets(),
    "token-classification": TagTargets(),
    "semantic-segmentation": MaskTargets(),
    "object-detection": BoxTargets(),
    "causal-lm": CompletionTargets(),
    "seq2seq": CompletionTargets("target_column"),
}
