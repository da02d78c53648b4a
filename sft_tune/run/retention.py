"""Where a trial's files lie, and which checkpoints stay."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sft_tune.store import checkpoints
from sft_tune.store.database import Database


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


def drop_surplus(
    db: Database, study_id: int, folder: Path, keep: int, *, maximize: bool
) -> tuple[int, int]:
    """Remove the weights of trials beyond the best ``keep``, and of those that did not complete.

    Returns:
        How many trials lost theirs, and the bytes that were freed.
    """
    kept = checkpoints.kept_checkpoints(db, study_id)
    ranked = [(k.number, k.value) for k in kept if k.state == "COMPLETE" and k.value is not None]
    stay = {number for number, _ in ranked} - set(surplus(ranked, keep, maximize=maximize))
    gone = [trial for trial in kept if trial.number not in stay]
    freed = 0
    for trial in gone:
        # Before its files go, so that none is missed.
        checkpoints.forget_checkpoint(db, trial)
        for weights in trial_folder(folder, trial.number).glob("*.safetensors"):
            freed += weights.stat().st_size
            weights.unlink(missing_ok=True)
    return len(gone), freed
