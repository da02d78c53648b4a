"""Targets that are numbers: standardized by the training split's mean and deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.trial.data.examples import Examples, listed
from sft_tune.trial.data.parts import Part
from sft_tune.trial.data.target_kinds import Found, Labels, Stats


class NumberTargets:
    """One number an example: stored as float32 [n], in deviations from the training mean."""

    def read(self, examples: Examples, data: DataSpec, where: str, labels: Labels | None) -> Found:
        """Return all examples; a number that is missing or not finite is an error."""
        values = [_number(raw, examples, i, where) for i, raw in enumerate(examples.labels)]
        if bad := [i for i, value in enumerate(values) if not math.isfinite(value)]:
            places = listed((examples.place(i) for i in bad), 5)
            raise DataError(
                f"{where}: {len(bad)} of {len(values)} targets are missing or no finite numbers, "
                f"at {places}. Fill them in, or remove these examples."
            )
        rows = np.arange(len(values))
        part = Part(examples, rows, np.array(values), np.zeros(len(values), dtype=np.int64))
        self.check(part, (), where, "Mend the source or data.label_column.")
        return Found(part, (data.label_column,))

    def check(self, part: Part, labels: Labels, where: str, remedy: str) -> None:
        """Check that there are two examples: one has no spread to explain."""
        if len(part.rows) < 2:
            raise DataError(f"{where} has {len(part.rows)} examples; two are needed. {remedy}")

    def check_train(self, part: Part, labels: Labels, where: str) -> None:
        """Check that the targets differ."""
        if np.ptp(part.targets) == 0:
            raise DataError(
                f"{where}: all {len(part.targets)} targets are {part.targets[0]:g}, so there is "
                "nothing to learn. Name the right data.label_column."
            )

    def counts(self, part: Part, labels: Labels) -> dict[str, int]:
        """Return nothing: numbers are not counted."""
        return {}

    def finish(
        self, parts: Mapping[str, Part], stats: Stats | None
    ) -> tuple[dict[str, Part], Stats]:
        """Return the parts standardized, and ``mean`` and ``deviation`` of train."""
        if stats is None:
            train = parts["train"].targets
            stats = {"mean": float(train.mean()), "deviation": float(train.std())}
        mean, deviation = stats["mean"], stats["deviation"]
        return {
            name: part._replace(targets=((part.targets - mean) / deviation).astype(np.float32))
            for name, part in parts.items()
        }, stats


def _number(raw: Any, examples: Examples, i: int, where: str) -> float:
    if raw is None or (isinstance(raw, str) and not raw.strip()):
        return math.nan
    try:
        if isinstance(raw, bool):
            raise TypeError
        return float(raw)
    except (TypeError, ValueError):
        raise DataError(
            f"{where}: a target must be a number, not {str(raw)[:60]!r} (at {examples.place(i)}). "
            "Name the right data.label_column, or choose a classification task."
        ) from None
