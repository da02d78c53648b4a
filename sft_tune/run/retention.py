"""Where a trial's files lie, and which checkpoints stay."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sft_tune.spec.paths import is_url
from sft_tune.store import checkpoints
from sft_tune.store.database import Database
from sft_tune.trial.files import WEIGHTS, files_of


def trial_place(artifacts: str, number: int) -> str:
    """Return where the files of trial ``number`` belong: below ``artifacts``, a path or a URL."""
    name = f"trial-{number:05d}"
    return f"{artifacts}/{name}" if is_url(artifacts) else str(Path(artifacts) / name)


def prepared_place(artifacts: str) -> str | None:
    """Return the URL where the machines of a study share prepared data; None: nowhere."""
    return f"{artifacts}/prepared" if is_url(artifacts) else None


def working_folder(artifacts: str, cache: Path) -> Path:
    """Return the folder of this machine that the study's trials work in.

    It is ``artifacts`` itself, or where that is a URL, one below ``cache`` for that URL alone.
    """
    if not is_url(artifacts):
        return Path(artifacts)
    return cache / "trials" / hashlib.sha256(artifacts.encode()).hexdigest()[:16]


def surplus(values: Iterable[tuple[int, float]], keep: int, *, maximize: bool) -> list[int]:
    """Return the numbers of the trials whose checkpoints go when only ``keep`` stay.

    Args:
        values: number and objective value of each trial that has a checkpoint.
        keep: how many stay: those with the best values, of equals the earlier.
        maximize: whether a larger value is better.
    """
    ranked = sorted(values, key=lambda row: (-row[1] if maximize else row[1], row[0]))
    return [number for number, _ in ranked[keep:]]


def worst_kept(db: Database, study_id: int, keep: int, *, maximize: bool) -> float | None:
    """Return the value that a trial must reach to keep its weights; None: any.

    It only rises: as many as ``keep`` trials have better ones, or this one, already.
    """
    kept = checkpoints.kept_checkpoints(db, study_id)
    values = [one.value for one in kept if one.state == "COMPLETE" and one.value is not None]
    return sorted(values, reverse=maximize)[keep - 1] if len(values) >= keep else None


def drop_surplus(
    db: Database, study_id: int, artifacts: str, keep: int, *, maximize: bool
) -> tuple[int, int]:
    """Remove the weights of trials beyond the best ``keep``, and of those that did not complete.

    Args:
        db: the study database.
        study_id: the study.
        artifacts: where its files are, a folder or a URL.
        keep: how many trials keep their weights.
        maximize: whether a larger value is better.

    Returns:
        How many trials lost theirs, and the bytes that were freed.

    Raises:
        OSError: a file could not be removed.
    """
    kept = checkpoints.kept_checkpoints(db, study_id)
    ranked = [(k.number, k.value) for k in kept if k.state == "COMPLETE" and k.value is not None]
    stay = {number for number, _ in ranked} - set(surplus(ranked, keep, maximize=maximize))
    gone = [trial for trial in kept if trial.number not in stay]
    freed = 0
    for trial in gone:
        # Before its files go, so that none is missed.
        checkpoints.forget_checkpoint(db, trial)
        files = files_of(trial_place(artifacts, trial.number))
        for name, size in files.sizes().items():
            if name.endswith(WEIGHTS):
                files.remove(name)
                freed += size
    return len(gone), freed
