"""Examples chosen for a split, and how a data set's splits are written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sft_tune.trial.data.arrays import array_path
from sft_tune.trial.data.cache import save
from sft_tune.trial.data.examples import Examples


class Encoder(Protocol):
    """Writes the inputs of examples as arrays."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the arrays, besides the inputs."""

    def write(
        self, examples: Examples, rows: NDArray[np.int64], folder: Path, split: str
    ) -> dict[str, Any]:
        """Write the inputs of ``rows`` as arrays of ``split``; return facts."""


class Part(NamedTuple):
    """Examples chosen for one split.

    Attributes:
        examples: what was read.
        rows: the chosen ones of them.
        targets: the target of each row, [n] or [n, k].
        strata: what splits and limits keep the shares of, an index of each row [n].
    """

    examples: Examples
    rows: NDArray[np.int64]
    targets: NDArray[Any]
    strata: NDArray[np.int64]

    def take(self, chosen: NDArray[np.int64]) -> Part:
        """Return the part of these of its rows."""
        return Part(self.examples, self.rows[chosen], self.targets[chosen], self.strata[chosen])


def write_parts(
    parts: Mapping[str, Part], encoder: Encoder, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write the arrays of ``parts`` (by split) into ``folder``; return the facts of each.

    Raises:
        UnreadableError: for the first image or sound that cannot be read.
        DataError: for other examples that cannot be read.
        MixedSizesError: where images were to keep their own size, and differ in it.
    """
    return {split: _write(part, encoder, folder, split) for split, part in parts.items()}


def _write(part: Part, encoder: Encoder, folder: Path, split: str) -> dict[str, Any]:
    save(array_path(folder, split, "targets"), part.targets)
    return encoder.write(part.examples, part.rows, folder, split)
