"""What of a trial is kept where a URL points, so that another machine can go on with it.

The trial works in a folder of this machine. A copy of each checkpoint is put there by a thread of
its own while the trial trains on; before the trial's end is told, its best weights are there. The
checkpoints there are named after their step, and the last two stay: one that was torn on its way
is found by its checksum, and the one before it is taken.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from sft_tune.errors import StorageError
from sft_tune.trial import checkpoint
from sft_tune.trial.files import RemoteFiles
from sft_tune.trial.paths import TrialPaths

KEPT = 2
PATIENCE = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between the tries of what has to be there before the trial's end is told."""


def open_mirror(url: str | None, paths: TrialPaths) -> Mirror | None:
    """Return the mirror of ``paths`` at ``url``, the log so far fetched; None without a URL.

    Raises:
        StorageError: what is at ``url`` cannot be read.
    """
    if url is None:
        return None
    try:
        mirror = Mirror(url, paths)
        mirror.fetch_log()
    except OSError as error:
        raise StorageError(f"storage.artifacts: {error}; start again when it answers") from error
    return mirror


class Mirror:
    """The copy of one trial's folder at a URL."""

    def __init__(self, url: str, paths: TrialPaths) -> None:
        """Keep the files of ``paths`` at ``url``.

        Raises:
            StorageError: the filesystem is unknown, or its package is not installed.
            OSError: it cannot be read.
        """
        self.url = url
        self._paths = paths
        self._remote = RemoteFiles(url)
        self._stem, self._suffix = paths.resume.stem, paths.resume.suffix
        named = re.compile(rf"{re.escape(self._stem)}-(\d+){re.escape(self._suffix)}")
        self._there = {int(found[1]) for name in self._sizes() if (found := named.fullmatch(name))}
        self._parts: list[Mirror] = []
        self._complaints: list[str] = []
        self._failed = False
        self._changed = threading.Condition()
        self._wanted: tuple[int, Path] | None = None
        self._working = False

    @property
    def best(self) -> str:
        """Where the best weights are."""
        return f"{self.url}/{self._paths.best.name}"

    def part(self, paths: TrialPaths) -> Mirror:
        """Return a mirror at the same URL of other files of the same folder.

        Raises:
            StorageError: the URL cannot be read.
        """
        try:
            part = Mirror(self.url, paths)
        except OSError as error:
            raise StorageError(f"storage.artifacts: {error}; start again later") from error
        self._parts.append(part)
        return part

    def fetch_file(self, path: Path) -> None:
        """Bring the file ``path`` of the trial's folder here, where it is there.

        Raises:
            OSError: it could not be copied.
        """
        with contextlib.suppress(FileNotFoundError):
            self._remote.get(path.name, path)

    def fetch(
        self, here: int | None = None, check: Callable[[Path], object] = checkpoint.read
    ) -> list[str]:
        """Bring the last good checkpoint here when it is further than the one that is here.

        Args:
            here: the step of the one that is here; None: that of the checkpoint file.
            check: raises a ValueError for a file that is damaged.

        Returns:
            What was wrong with those that were not taken, in words.

        Raises:
            StorageError: they cannot be read now; to begin anew would lose them.
        """
        here, wrong = self._step_here() if here is None else here, []
        for step in sorted((step for step in self._there if step > here), reverse=True):
            fetched = self._paths.root / "fetched.tmp"
            try:
                self._remote.get(self._name(step), fetched)
                check(fetched)
            except (FileNotFoundError, ValueError) as error:
                fetched.unlink(missing_ok=True)
                self._there.discard(step)
                said = str(error).replace(str(fetched), f"{self.url}/{self._name(step)}")
                wrong.append(f"{said}; took the one before it")
                continue
            except OSError as error:
                raise StorageError(f"storage.artifacts: {error}; start again later") from error
            if self._paths.resume.exists():
                os.replace(self._paths.resume, self._paths.previous_resume)
            os.replace(fetched, self._paths.resume)
            break
        return wrong

    def saved(self, step: int) -> None:
        """Have the checkpoint that was just written, after ``step`` steps, copied meanwhile.

        Of one that is written while the last is still on its way, the newest counts.
        """
        frozen = self._paths.root / f"upload-{step}.tmp"
        _same_file(self._paths.resume, frozen)
        with self._changed:
            if self._wanted is not None:
                self._wanted[1].unlink(missing_ok=True)
            self._wanted = (step, frozen)
            if not self._working:
                self._working = True
                threading.Thread(target=self._upload, daemon=True).start()

    def complaints(self) -> list[str]:
        """Return what went wrong since this was last asked, in words."""
        with self._changed:
            said, self._complaints = self._complaints, []
        return said

    def wait(self) -> None:
        """Return when no copy is on its way."""
        with self._changed:
            self._changed.wait_for(lambda: not self._working)

    def put_best(self) -> None:
        """Copy the best weights there, with patience.

        Raises:
            OSError: they could not be copied.
        """
        self.put_file(self._paths.best)

    def put_file(self, path: Path) -> None:
        """Copy the file ``path`` there, with patience.

        Raises:
            OSError: it could not be copied.
        """
        _put(self._remote, path)

    def put_folder(self, folder: Path) -> None:
        """Copy all files of ``folder``, which is in the trial's, there, with patience.

        Raises:
            OSError: they could not be copied.
        """
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            place = path.parent.relative_to(self._paths.root).as_posix()
            _put(RemoteFiles(f"{self.url}/{place}"), path)

    def leave(self, step: int) -> None:
        """Copy the checkpoint after ``step`` steps, for the trial to go on another time.

        A failure is a complaint: there is little time, and the one here can be gone on from.
        """
        if self._paths.resume.exists():
            self.saved(step)
        self.wait()

    def put_notes(self) -> None:
        """Copy configuration and log there; a failure is a complaint."""
        for path in (self._paths.config, self._paths.log):
            try:
                if path.exists():
                    self._remote.put(path, path.name)
            except OSError as error:
                self._complain(error)

    def fetch_log(self) -> None:
        """Bring the log here where the one there is longer: other machines wrote it."""
        path = self._paths.log
        here = path.stat().st_size if path.exists() else 0
        if self._sizes().get(path.name, 0) > here:
            self._remote.get(path.name, path)

    def close(self, ended: bool) -> None:
        """Copy log and configuration there; then the folder here goes.

        It stays where a trial that has not ``ended`` has in it what could not be copied.
        """
        self.put_notes()
        if ended or not any(mirror._failed for mirror in (self, *self._parts)):
            shutil.rmtree(self._paths.root, ignore_errors=True)

    def _upload(self) -> None:
        """Copy what is wanted, until nothing is."""
        while True:
            with self._changed:
                if self._wanted is None:
                    self._working = False
                    self._changed.notify_all()
                    return
                wanted, self._wanted = self._wanted, None
            self._copy(*wanted)

    def _copy(self, step: int, frozen: Path) -> None:
        try:
            self._remote.put(frozen, self._name(step))
            self._failed = False
            self._there.add(step)
            for old in sorted(self._there)[:-KEPT]:
                self._remote.remove(self._name(old))
                self._there.discard(old)
            self.put_notes()
        except OSError as error:
            self._complain(error)
        finally:
            frozen.unlink(missing_ok=True)

    def _name(self, step: int) -> str:
        """Return the name there of the checkpoint after ``step`` steps."""
        return f"{self._stem}-{step:09d}{self._suffix}"

    def _sizes(self) -> dict[str, int]:
        return self._remote.sizes()

    def _step_here(self) -> int:
        """Return the step of the last good checkpoint of this machine; -1 without one."""
        found, _ = checkpoint.read_last(self._paths.resume, self._paths.previous_resume)
        return -1 if found is None else int(found[1].get("step", -1))

    def _complain(self, error: OSError) -> None:
        with self._changed:
            self._complaints.append(f"not copied: {error}")
            self._failed = True


def _put(remote: RemoteFiles, path: Path) -> None:
    pause = threading.Event()
    for seconds in PATIENCE:
        with contextlib.suppress(OSError):
            remote.put(path, path.name)
            return
        pause.wait(seconds)
    remote.put(path, path.name)


def _same_file(path: Path, other: Path) -> None:
    """Make ``other`` a second name of the file ``path``, which may be replaced from now on."""
    other.unlink(missing_ok=True)
    try:
        os.link(path, other)
    except OSError:  # a filesystem without links
        shutil.copyfile(path, other)
