"""Prepared data where a study's URL points: what one machine has prepared, the others fetch.

An entry of the cache (see `data.cache`) is a folder of files there; the one that seals it is
written last, so that an entry is complete or not there. Two machines that write one at the same
time write the same. Nothing here ends a trial: what cannot be fetched is prepared, what cannot be
written is missed by others only.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from sft_tune.errors import SftTuneError
from sft_tune.trial.files import RemoteFiles
from sft_tune.trial.kept import META

log = logging.getLogger(__name__)

_place: ContextVar[str | None] = ContextVar("prepared", default=None)
_there: set[str] = set()
"""Entries, by their URLs, that this process knows to be there."""


@contextlib.contextmanager
def shared_at(url: str | None) -> Iterator[None]:
    """Share prepared data at ``url`` while the block runs; None: with nobody."""
    token = _place.set(url)
    try:
        yield
    finally:
        _place.reset(token)


def fetch(key: str, folder: Path) -> None:
    """Bring the entry ``key`` into ``folder``, which is empty; it stays so where it is not there.

    Whether what came is whole is for the caller to look at.
    """
    remote = _remote(key)
    if remote is None:
        return
    try:
        names = remote.sizes()
        if META in names:
            for name in names:
                remote.get(name, folder / name)
            _there.add(remote.url)
    except OSError as error:
        log.warning("prepared data is not fetched but prepared: %s", error)


def offer(key: str, folder: Path, *, anew: bool = False) -> None:
    """Copy the entry ``key`` of this machine there, unless it is there; ``anew``: even then."""
    remote = _remote(key)
    if remote is None or (remote.url in _there and not anew):
        return
    try:
        if anew or META not in remote.sizes():
            files = (path for path in sorted(folder.iterdir()) if path.name != META)
            for path in (*files, folder / META):
                remote.put(path, path.name)
        _there.add(remote.url)
    except OSError as error:
        log.warning("prepared data is not shared: %s", error)


def _remote(key: str) -> RemoteFiles | None:
    url = _place.get()
    if url is None:
        return None
    try:
        return RemoteFiles(f"{url}/{key}")
    except SftTuneError as error:
        log.warning("prepared data is not shared: %s", error)
        return None
