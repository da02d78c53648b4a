"""Targets that are sets of labels: any number of them an example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.trial.data.examples import Examples, listed
from sft_tune.trial.data.labels import check_agreement, in_label_order, label_name
from sft_tune.trial.data.parts import Part
from sft_tune.trial.data.target_kinds import Found, Labels, Stats

SEPARATOR = "|"
_ONE, _ZERO = {"1", "true", "True"}, {"0", "false", "False"}


class LabelSetTargets:
    """Labels of an example, none to all: uint8 [n, k], 1 where it has the label."""

    def read(self, examples: Examples, data: DataSpec, where: str, labels: Labels | None) -> Found:
        """Return all examples; splits of them are not stratified."""
        if data.label_columns is not None:
            labels = data.label_columns
            sets = [
                _marked(raw, data.label_columns, f"{where}, {examples.place(i)}")
                for i, raw in enumerate(examples.labels)
            ]
        else:
            sets = [
                _listed(raw, f"{where}, {examples.place(i)}")
                for i, raw in enumerate(examples.labels)
            ]
            found = {name for names in sets for name in names}
            if labels is None:
                labels = in_label_order(found)
            else:
                check_agreement(found, labels, where)
        index = {label: k for k, label in enumerate(labels)}
        targets = np.zeros((len(sets), len(labels)), dtype=np.uint8)
        for i, names in enumerate(sets):
            targets[i, [index[name] for name in names]] = 1
        part = Part(examples, np.arange(len(sets)), targets, np.zeros(len(sets), dtype=np.int64))
        self.check(part, labels, where, "Mend the source or data.label_column.")
        return Found(part, labels)

    def check(self, part: Part, labels: Labels, where: str, remedy: str) -> None:
        """Check that there are examples, and two labels."""
        if not len(part.rows):
            raise DataError(f"{where} has no examples. {remedy}")
        if len(labels) < 2:
            raise DataError(
                f"{where} has the labels {listed(labels) or 'none'}; two are needed. {remedy}"
            )

    def check_train(self, part: Part, labels: Labels, where: str) -> None:
        """Check that some example has each label, and some has not."""
        shares = part.targets.mean(axis=0)
        if bad := [label for label, share in zip(labels, shares, strict=True) if share in (0, 1)]:
            raise DataError(
                f"{where}: all {len(part.rows)} examples, or none, have {listed(bad)}. Raise "
                "data.train_limit, or remove these labels."
            )

    def counts(self, part: Part, labels: Labels) -> dict[str, int]:
        """Return the number of examples that have each label."""
        return {k: int(n) for k, n in zip(labels, part.targets.sum(axis=0), strict=True)}

    def finish(
        self, parts: Mapping[str, Part], stats: Stats | None
    ) -> tuple[dict[str, Part], Stats]:
        """Return ``parts`` as they are."""
        return dict(parts), {}


def _listed(raw: Any, place: str) -> list[str]:
    """Return the names in a list of labels, or in a text of them; none where there is nothing."""
    if isinstance(raw, str):
        raw = [part.strip() for part in raw.split(SEPARATOR) if part.strip()]
    if raw is None:
        return []
    try:
        if not isinstance(raw, Iterable):
            raise TypeError(type(raw).__name__)
        names = [label_name(item) for item in raw]
    except TypeError as error:
        raise DataError(
            f"{place}: labels must be a list of strings or integers, not {error} "
            f"({str(raw)[:60]!r}). Name the right data.label_column."
        ) from None
    if None in names:
        raise DataError(f"{place}: a label of the list is missing. Fill it in, or remove it.")
    return [name for name in names if name is not None]


def _marked(row: tuple[Any, ...], columns: tuple[str, ...], place: str) -> list[str]:
    """Return the columns in which ``row`` has a 1."""
    found = []
    for column, raw in zip(columns, row, strict=True):
        try:
            text = label_name(raw)
        except TypeError:
            text = str(raw)
        if text not in _ONE | _ZERO:
            raise DataError(
                f"{place}: column '{column}' must hold 0 or 1 (got {str(raw)[:60]!r}). Mend it, or "
                "take it out of data.label_columns."
            )
        if text in _ONE:
            found.append(column)
    return found
