"""Where a trial's files lie, and which checkpoints stay."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def trial_folder(artifacts: Path | str, number: int) -> Path:
    """Return the folder of trial ``number`` in its study's folder ``artifacts``."""
    return Path(artifacts) / f"trial-{number:05d}"


def surplus(values: Iterable[tuple[int, float]], keep: int, *, maximize: bool) -> list[int]:
    """Return the numbers of the trials whose checkpoints go when only ``keep`` stay.

    Args:
        values: number and objective value of each trial that has a checkpoint.
        keep: how many stay: those with the best values, of equals the earlier.
        maximize: whether a larger value is better.
    """
    ranked = sorted(values, key=lambda row: (-row[1] if maximize else row[1], row[0]))
    return [number for number, _ in ranked[keep:]]
