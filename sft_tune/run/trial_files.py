"""The files of a search's trials, as one runner keeps them: which go, and when.

Where they lie at a URL they go off the dispatcher's way, see `cleaning`.
"""

from __future__ import annotations

from sft_tune.run.cleaning import Cleaner, sweep
from sft_tune.run.messages import cache_folder
from sft_tune.run.placement import Placement
from sft_tune.run.retention import drop_surplus, working_folder, worst_kept
from sft_tune.spec.paths import is_url
from sft_tune.store.database import Database
from sft_tune.store.records import StudyRecord
from sft_tune.trial.files import RemoteFiles, clear_resume
from sft_tune.trial.paths import TrialPaths


class TrialFiles:
    """What the trials of one study leave on disk, or at a URL."""

    def __init__(
        self, db: Database, record: StudyRecord, artifacts: str, keep: int, *, maximize: bool
    ) -> None:
        """Keep the files of the study ``record``.

        Args:
            db: the study database.
            record: the study's row.
            artifacts: where its trials keep their files, a folder or a URL.
            keep: how many trials keep their weights.
            maximize: whether a larger value is better.
        """
        self._db = db
        self._study = record
        self._artifacts = artifacts
        self._folder = working_folder(artifacts, cache_folder())
        self._keep = keep
        self._maximize = maximize
        self._cleaner = Cleaner()

    def sweep(self) -> None:
        """Remove what earlier runners had no time to, where the files lie at a URL."""
        if is_url(self._artifacts):
            self._cleaner.do(
                lambda: sweep(self._db, self._study.name, self._artifacts, self._folder)
            )

    def kept_from(self) -> float | None:
        """Return the value that a trial must reach to keep its weights; None: any."""
        return worst_kept(self._db, self._study.id, self._keep, maximize=self._maximize)

    def clear_resume(self, placement: Placement) -> None:
        """Remove what ``placement``, which has ended, would have gone on from."""
        if placement.url is None:
            TrialPaths(placement.folder).clear_resume()
            return
        url = placement.url
        self._cleaner.do(lambda: clear_resume(RemoteFiles(url)))

    def drop_surplus(self) -> None:
        """Remove the weights of trials that lost their rank.

        Raises:
            OSError: a file could not be removed.
        """

        def drop() -> None:
            drop_surplus(
                *(self._db, self._study.id, self._artifacts, self._keep), maximize=self._maximize
            )

        if is_url(self._artifacts):
            self._cleaner.do(drop)
        else:
            drop()

    def wait(self) -> None:
        """Return when everything is done."""
        self._cleaner.wait()
