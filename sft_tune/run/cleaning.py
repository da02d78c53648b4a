"""What is removed where a URL points, off the dispatcher's way: its network must not hold it up.

Nothing depends on it: what could not be removed is found by the next runner of the study.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sft_tune.errors import SftTuneError
from sft_tune.run.retention import trial_place
from sft_tune.store.database import Database
from sft_tune.store.reads import trial_rows
from sft_tune.trial.files import WEIGHTS, RemoteFiles, is_for_resume

log = logging.getLogger(__name__)


class Cleaner:
    """Does one thing after another in a thread of its own."""

    def __init__(self) -> None:
        """Have nothing to do yet; the thread is made when it is needed."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cleaner")

    def do(self, task: Callable[[], object]) -> None:
        """Do ``task`` later; a failure is logged."""
        self._thread.submit(_told, task)

    def wait(self) -> None:
        """Return when everything is done."""
        self._thread.submit(lambda: None).result()


def sweep(db: Database, study: str, artifacts: str, folder: Path) -> None:
    """Remove what ended trials of ``study`` have left at the URL ``artifacts`` and in ``folder``.

    That is: what a resume needs, weights that were to go, and working copies of this machine.

    Raises:
        OSError: something could not be removed.
    """
    ended = {row.number: row for row in trial_rows(db, study) if row.phase == "ended"}
    names = {Path(trial_place(str(folder), number)).name: row for number, row in ended.items()}
    for name in names:
        _empty(folder / name)
    remote = RemoteFiles(artifacts)
    for path in remote.all_sizes():
        trial, _, name = path.partition("/")
        if trial not in names or "/" in name:
            continue  # a confirmation run's, which may be under way
        forgotten = name.endswith(WEIGHTS) and names[trial].checkpoint is None
        if is_for_resume(name) or forgotten:
            remote.remove(path)


def _empty(folder: Path) -> None:
    """Remove the files in ``folder``, and itself when nothing else is in it."""
    if folder.is_dir():
        for file in folder.iterdir():
            if file.is_file():
                file.unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _told(task: Callable[[], object]) -> None:
    try:
        task()
    except (OSError, SftTuneError) as error:
        log.warning("%s; the next start of the study tries again", error)
