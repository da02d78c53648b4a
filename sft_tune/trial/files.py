"""The files of a trial's folder, wherever it is: on this machine, or where a URL points.

A URL is of any filesystem that `fsspec` knows (s3://, gs://, sftp://, file://, ...); its package is
imported when it is first used. Credentials come from the environment, or from fsspec's own
configuration (~/.config/fsspec), as each filesystem documents. No torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from sft_tune.errors import StorageError
from sft_tune.spec.paths import is_url

# Where a file appears whole or not at all, so that no other name is needed before.
ATOMIC = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"}
WEIGHTS = ".safetensors"


class Files(Protocol):
    """The files of one folder, by their names in it."""

    def sizes(self) -> dict[str, int]:
        """Return names and sizes in bytes, in the order of the names; none where it is gone."""

    def remove(self, name: str) -> None:
        """Remove the file ``name``, where it is there."""


class LocalFiles:
    """Files in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is created."""
        self._folder = folder

    def sizes(self) -> dict[str, int]:
        """Return names and sizes in bytes; none where the folder is gone."""
        if not self._folder.is_dir():
            return {}
        files = (path for path in sorted(self._folder.iterdir()) if path.is_file())
        return {path.name: path.stat().st_size for path in files}

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self._folder / name).unlink(missing_ok=True)


class RemoteFiles:
    """Files below a URL.

    Every failure of the filesystem is an OSError, whatever its library raises.
    """

    def __init__(self, url: str) -> None:
        """Name the folder at ``url``; nothing is created.

        Raises:
            StorageError: the filesystem is unknown, or its package is not installed.
        """
        self.url = url.rstrip("/")
        self._fs, self._root = _connect(self.url)

    def sizes(self) -> dict[str, int]:
        """Return names and sizes in bytes; none where there is nothing."""
        with self._told("list"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                return {}
        named = {str(f["name"]).rpartition("/")[2]: f for f in found if f["type"] == "file"}
        return {name: int(named[name]["size"] or 0) for name in sorted(named) if name}

    def all_sizes(self) -> dict[str, int]:
        """Return paths below the URL and sizes in bytes, of the folders in it too."""
        with self._told("list"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        start = len(self._root.strip("/")) + 1
        return {path.strip("/")[start:]: int(f["size"] or 0) for path, f in sorted(found.items())}

    def put(self, local: Path, name: str) -> None:
        """Copy the file ``local`` there; under ``name`` it is whole, or what was there before.

        Raises:
            OSError: it could not be copied.
        """
        with self._told(f"write {name} to"):
            self._fs.makedirs(self._root, exist_ok=True)
            if self._is_atomic():
                self._fs.put_file(os.fspath(local), self._path(name))
                return
            unfinished = f"{name}.{uuid4().hex[:8]}.tmp"
            try:
                self._fs.put_file(os.fspath(local), self._path(unfinished))
                self._fs.mv(self._path(unfinished), self._path(name))
            except BaseException:
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    self._fs.rm_file(self._path(unfinished))
                raise

    def get(self, name: str, local: Path) -> None:
        """Copy the file ``name`` to ``local``; there it is whole or absent.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it could not be copied.
        """
        unfinished = local.with_name(f"{local.name}.{os.getpid()}.tmp")
        try:
            with self._told(f"read {name} of"):
                self._fs.get_file(self._path(name), os.fspath(unfinished))
            os.replace(unfinished, local)
        finally:
            unfinished.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file."""
        with self._told(f"remove {name} of"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def remove_all(self) -> None:
        """Remove everything below the URL."""
        with self._told("remove"), contextlib.suppress(FileNotFoundError):
            self._fs.invalidate_cache()
            self._fs.rm(self._root, recursive=True)

    def version(self, name: str) -> str:
        """Return what changes when the file ``name`` does.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self._told(f"read {name} of"):
            self._fs.invalidate_cache()
            return str(self._fs.ukey(self._path(name)))

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _is_atomic(self) -> bool:
        protocol = self._fs.protocol
        return bool(ATOMIC & set((protocol,) if isinstance(protocol, str) else protocol))

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # the border: each filesystem's library has errors of its own
            said = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"cannot {what} {self.url}: {said}") from error


def clear_resume(files: Files) -> None:
    """Remove what a resume needs, and what a process left that died while it wrote.

    Raises:
        OSError: it could not be removed.
    """
    for name in files.sizes():
        if is_for_resume(name):
            files.remove(name)


def is_for_resume(name: str) -> bool:
    """Tell whether the file ``name`` of a trial's folder has no use when the trial has ended."""
    return name.startswith("resume") or name.endswith(".tmp")


def files_of(place: str) -> Files:
    """Return the files of the folder at ``place``, a path or a URL."""
    return RemoteFiles(place) if is_url(place) else LocalFiles(Path(place))


def copy_of(url: str, cache: Path) -> Path:
    """Return a copy on this machine of the file at ``url``, fetched once for each of its versions.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it could not be copied.
    """
    folder, _, name = url.rpartition("/")
    remote = RemoteFiles(folder)
    version = hashlib.sha256(f"{url}\n{remote.version(name)}".encode()).hexdigest()[:16]
    local = cache / "weights" / version / name
    if not local.exists():
        local.parent.mkdir(parents=True, exist_ok=True)
        remote.get(name, local)
    return local


def _connect(url: str) -> tuple[Any, str]:
    """Return fsspec's filesystem of ``url``, and the path in it."""
    import fsspec

    scheme = url.partition("://")[0]
    if scheme == "memory":
        raise StorageError(
            f"storage.artifacts: processes must be able to share it (got {url}, which is of one "
            "process); give a folder, or the URL of a server"
        )
    try:
        fs, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise StorageError(
            f"storage.artifacts: {scheme}:// needs a package (got {url}): {error}"
        ) from None
    except Exception as error:  # the border, as above: a URL that its filesystem refuses
        said = " ".join(str(error).split())
        raise StorageError(
            f"storage.artifacts: a URL that fsspec can open (got {url}): {said}"
        ) from None
    return fs, str(root)
