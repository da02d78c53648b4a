"""What a training function keeps in its folder, where the artifacts are at a URL.

It works in a folder of this machine. When it reports, and nothing is being written there, the
folder and what it has reported are put into one archive, which is copied to the URL while the
function goes on; another machine goes on from the last one. At the end the files themselves are
copied.
"""

from __future__ import annotations

import os
import shutil
import time
import zipfile
from pathlib import Path

from sft_tune.errors import StorageError
from sft_tune.trial.mirror import Mirror
from sft_tune.trial.paths import FunctionPaths, TrialPaths


class FunctionFiles:
    """The folder of one trial's function, and its copy."""

    def __init__(self, paths: TrialPaths, mirror: Mirror, seconds: float) -> None:
        """Keep the files of ``paths`` at ``mirror``, at most once in so many seconds.

        Raises:
            StorageError: the URL cannot be read.
        """
        self._paths = FunctionPaths(paths.root)
        self._mirror = mirror.part(self._paths)
        self._seconds = seconds
        self._saved_at = time.monotonic()

    def fetch(self, here: int) -> list[str]:
        """Bring the last archive here, if it is of more than ``here`` percent.

        Returns:
            What was wrong with those that were not taken, in words.

        Raises:
            StorageError: they cannot be read now.
        """
        self._paths.resume.unlink(missing_ok=True)
        wrong = self._mirror.fetch(here, _check)
        if self._paths.resume.exists():
            shutil.rmtree(self._paths.function_folder, ignore_errors=True)
            with zipfile.ZipFile(self._paths.resume) as archive:
                archive.extractall(self._paths.root)
        return wrong

    def reported(self, percent: int) -> None:
        """Copy what there is after ``percent`` percent, if it is time to."""
        if time.monotonic() - self._saved_at >= self._seconds:
            self._pack()
            self._mirror.saved(percent)
            self._saved_at = time.monotonic()

    def close(self, percent: int, *, ended: bool) -> list[str]:
        """Copy what there is: the files themselves, or to go on from where it has not ``ended``.

        Returns:
            What could not be copied meanwhile, in words.

        Raises:
            StorageError: the files of a trial that has ended cannot be copied.
        """
        if ended:
            try:
                self._mirror.put_folder(self._paths.function_folder)
            except OSError as error:
                raise StorageError(
                    f"storage.artifacts: {error}; when it can be written, start again: the trial "
                    "goes on from its last report"
                ) from error
            self._mirror.wait()
        else:
            self._pack()
            self._mirror.leave(percent)
        return self._mirror.complaints()

    def _pack(self) -> None:
        paths = self._paths
        temporary = paths.resume.with_name(f"{paths.resume.name}.tmp")
        with zipfile.ZipFile(temporary, "w") as archive:
            for path in sorted(paths.function_folder.rglob("*")):
                archive.write(path, path.relative_to(paths.root))
            archive.write(paths.reports, paths.reports.name)
        os.replace(temporary, paths.resume)


def _check(path: Path) -> None:
    """Raise ValueError where ``path`` is no whole archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} is wrong")
