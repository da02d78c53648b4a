"""Prepared data on disk: an entry is complete, or it is not there.

An entry is a folder named by the key of what it was made from, with arrays (.npy) and `meta.json`.
It is written under a lock into a temporary folder, synced, and renamed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from sft_tune.errors import SftTuneError, UserError
from sft_tune.trial.kept import META, given_limit, hold, make_room
from sft_tune.trial.kept import prepared_root as prepared_root
from sft_tune.trial.shared import fetch, offer

# What is read of a file to see that it is whole: all of a small one, samples of a large one.
_BLOCK = 16 * 1024
_BLOCKS = 64
# What the system says of a folder that the user has to name otherwise.
_NO_FOLDER = (PermissionError, FileNotFoundError, NotADirectoryError, FileExistsError)


class Entry(NamedTuple):
    """A complete entry: its folder, and what its maker said about it (JSON)."""

    folder: Path
    meta: dict[str, Any]


def key_of(fields: Mapping[str, Any]) -> str:
    """Return the key of an entry made from ``fields`` (JSON-able): 32 hex digits."""
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Turn a failure to write below ``root`` into an error with its remedy.

    Raises:
        UserError: for a folder that cannot be made or written.
        SftTuneError: for a full disk and the like.
    """
    try:
        yield
    except OSError as error:
        text = f"cannot write prepared data under {root}: {error.strerror or error}. "
        if isinstance(error, _NO_FOLDER) or error.errno == errno.EROFS:
            remedy = "Set SFT_TUNE_CACHE to a folder that can be made and written."
            raise UserError(text + remedy) from error
        remedy = "Free some space there, or set SFT_TUNE_CACHE to a folder on another disk."
        raise SftTuneError(text + remedy) from error


def open_or_build(
    root: Path, key: str, build: Callable[[Path], dict[str, Any]], *, about: str = ""
) -> Entry:
    """Return the entry ``key`` below ``root``; have it built where it is absent or damaged.

    What another machine has built is fetched (see `shared`). An entry stays while this process
    lives. Where the cache then holds more than it may (see `make_room`), the least recently used
    entries that nobody uses go.

    Args:
        root: folder of entries; made where it is absent.
        key: name of the entry, of `key_of`.
        build: writes arrays into the empty folder that it is given, returns the meta data.
            Called by one process at a time; others wait for it.
        about: what it is made from, for people who list the cache.

    Raises:
        UserError, SftTuneError: where the entry cannot be written; nothing of it is left then.
    """
    folder, limit = root / key, given_limit()
    hold(root, key)
    if (meta := _read_whole(folder)) is not None:
        offer(key, folder)
        return Entry(folder, meta)
    built = False
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        hold(root, key)
        lock = FileLock(root / f"{key}.lock")
        lock.acquire(poll_interval=0.02)
    try:
        # Another process may have built it while this one waited.
        if (meta := _read_whole(folder)) is None:
            meta, built = _fetch_or_build(root, key, build, about)
    finally:
        lock.release()
    offer(key, folder, anew=built)
    make_room(root, limit, keep=key)
    return Entry(folder, meta)


def _fetch_or_build(
    root: Path, key: str, build: Callable[[Path], dict[str, Any]], about: str
) -> tuple[dict[str, Any], bool]:
    """Put the entry in its place; return its meta data, and whether it had to be built."""
    folder = root / key
    with writing(root):
        for left in root.glob(f".{key}.*"):  # of a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        temporary = root / f".{key}.{uuid.uuid4().hex[:8]}"
        temporary.mkdir()
    try:
        fetch(key, temporary)
        fetched = _read_whole(temporary)
        if fetched is None:
            with writing(root):
                for path in temporary.iterdir():
                    path.unlink()
        meta = build(temporary) if fetched is None else fetched
        with writing(root):
            if fetched is None:
                _seal(temporary, meta, about)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
            _sync_folder(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return meta, fetched is None


def _seal(folder: Path, meta: dict[str, Any], about: str) -> None:
    """Write `meta.json` last, with what tells whether the arrays are whole."""
    checks = {path.name: _check(path) for path in sorted(folder.glob("*.npy"))}
    with (folder / META).open("w", encoding="utf-8") as file:
        json.dump({"meta": meta, "files": checks, "about": about}, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _check(path: Path) -> list[Any]:
    """Return the size of a file and a digest of its contents, sampled where it is large."""
    size = path.stat().st_size
    state = hashlib.blake2b(digest_size=16)
    stride = max(_BLOCK, (size - _BLOCK) // (_BLOCKS - 1) + 1)
    with path.open("rb") as file:
        for start in [*range(0, size, stride), max(0, size - _BLOCK)]:
            file.seek(start)
            state.update(file.read(_BLOCK))
    return [size, state.hexdigest()]


def _read_whole(folder: Path) -> dict[str, Any] | None:
    """Return the meta data of an entry; None where it is absent, torn or damaged."""
    try:
        sealed = json.loads((folder / META).read_bytes())
        checks: dict[str, list[Any]] = sealed["files"]
        if any(_check(folder / name) != check for name, check in checks.items()):
            return None
        meta: dict[str, Any] = sealed["meta"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return meta


class ArrayWriter:
    """Writes one array to a .npy file, part by part.

    It writes to the file and never to a memory map: on a full disk the former raises an error,
    the latter kills the process.
    """

    def __init__(self, path: Path, shape: Sequence[int | None], dtype: DTypeLike) -> None:
        """Begin the file ``path``; its parts must make up ``shape``.

        The first side may be None: it is as long as the parts turn out to be.
        """
        self._path, self._dtype = path, np.dtype(dtype)
        self._shape = tuple(side or 0 for side in shape)
        self._grows = shape[0] is None
        self._missing = int(np.prod(self._shape))
        with writing(path.parent.parent):
            self._file = path.open("wb")
            self._write_header()

    def _write_header(self) -> None:
        """Write what kind of array the file holds, with room for a longer first side."""
        header = npy.header_data_from_array_1_0(np.empty(0, self._dtype))
        npy.write_array_header_1_0(
            self._file, {**header, "shape": self._shape, "fortran_order": False}
        )

    def append(self, part: NDArray[Any]) -> None:
        """Append ``part``, in C order."""
        if self._grows:
            self._shape = (self._shape[0] + len(part), *self._shape[1:])
        else:
            self._missing -= part.size
        with writing(self._path.parent.parent):
            self._file.write(np.ascontiguousarray(part, dtype=self._dtype).data)

    def close(self) -> None:
        """Sync the file to the disk.

        Raises:
            ValueError: where the parts do not make up the shape.
        """
        with writing(self._path.parent.parent), self._file:
            if self._grows:
                self._file.seek(0)
                self._write_header()
            self._file.flush()
            os.fsync(self._file.fileno())
        if self._missing:
            raise ValueError(f"{self._path.name} lacks {self._missing} elements of its shape")

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def save(path: Path, array: NDArray[Any]) -> None:
    """Write ``array`` to ``path``, synced."""
    with ArrayWriter(path, array.shape, array.dtype) as writer:
        writer.append(array)
