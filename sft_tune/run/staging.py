"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sft_tune.errors import UserError


@contextmanager
def staged(folder: Path, *, marker: str, force: bool) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends well, it is renamed to ``folder``.

    When it does not, nothing is left, and what was at ``folder`` is as it was.

    Args:
        folder: absolute.
        marker: name of a file that the new folder holds, and that a folder must hold to be
            replaced: what somebody else has put there is never removed.
        force: replace a folder that was made so before.

    Raises:
        UserError: ``folder`` is there and may not be replaced, or cannot be made.
    """
    check_free(folder, marker=marker, force=force)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        try:
            staging.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"the folder cannot be made (got {folder}: {error.strerror}); give another"
            ) from None
        yield staging
        _put_in_place(staging, folder, marker)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_free(folder: Path, *, marker: str, force: bool) -> None:
    """Raise UserError unless ``folder`` may be made, or replaced (see `staged`)."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"a file is in the way (got {folder}); give another folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / marker).is_file():
        raise UserError(
            f"the folder must be empty, or hold an earlier export (got {folder}); give another"
        )
    if folder == Path.cwd():
        raise UserError(f"the working directory cannot be replaced (got {folder}); leave it first")
    if not force:
        raise UserError(
            f"the folder holds an earlier export (got {folder}); --force replaces it, or give "
            "another"
        )


def _put_in_place(staging: Path, folder: Path, marker: str) -> None:
    """Rename ``staging`` to ``folder``; what was there goes afterwards."""
    if not folder.exists():
        staging.rename(folder)
        return
    if not any(folder.iterdir()):
        # It stays the same folder, in which a shell may stand; the marker comes last.
        for path in sorted(staging.iterdir(), key=lambda path: path.name == marker):
            path.rename(folder / path.name)
        return
    old = folder.with_name(f".{folder.name}.{os.getpid()}.replaced")
    folder.rename(old)
    try:
        staging.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
