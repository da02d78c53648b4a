"""What the cache keeps of prepared data and features: there, in use, too much. No torch.

Below the cache's folder `prepared` an entry is a folder named by its key (see `data.cache`). Beside
it lies `KEY.used`: who uses the entry holds a shared lock on it until the process ends, and its
time of change says when that was last. What would delete the entry needs the lock for itself alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sft_tune.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, which deletes no file that is open
    fcntl = None  # type: ignore[assignment]

META = "meta.json"
SIZE_VARIABLE = "SFT_TUNE_CACHE_SIZE"
SHARE = 4
"""What is kept may take one part in so many of what it and the free space are together."""
MOST = 10**12
"""And no more than so many bytes: on the disk of a cluster, whose quotas are not seen from here."""
SPARED_SECONDS = 3600.0
"""What was used within this time stays where nobody has set a limit."""
UNITS = {"": 10**9, "MB": 10**6, "GB": 10**9, "TB": 10**12}
MOST_HELD = 32
_held: dict[Path, int] = {}


class Kept(NamedTuple):
    """An entry of the cache.

    Attributes:
        key: its name.
        about: what it was made from, in words; empty where that is not known.
        size: in bytes.
        used: when it was last used, in seconds since 1970.
        in_use: whether a process uses it now.
    """

    key: str
    about: str
    size: int
    used: float
    in_use: bool


def prepared_root(cache: Path) -> Path:
    """Return the folder of all entries below the cache folder."""
    return cache / "prepared"


def hold(root: Path, key: str) -> None:
    """Keep the entry ``key`` below ``root`` from being deleted while this process lives.

    Of more than `MOST_HELD` entries the first are let go: no trial reads so many. Waits for one
    who deletes it at this moment. A cache that cannot be written is not held: nobody can delete
    from it.
    """
    path = root / f"{key}.used"
    with contextlib.suppress(OSError):
        if path not in _held:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_SH)
            _held[path] = file
            if len(_held) > MOST_HELD:
                os.close(_held.pop(next(iter(_held))))
        os.utime(path)


@contextlib.contextmanager
def _alone(root: Path, key: str) -> Iterator[bool]:
    """Hold the entry alone; gives False where another uses it (or it cannot be told)."""
    try:
        file = (root / f"{key}.used").open("ab")
    except OSError:
        yield False
        return
    with file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def entries(root: Path) -> list[Kept]:
    """Return the entries below ``root``, the last used first; torn and unfinished ones too."""
    found = []
    folders = [folder for folder in root.glob("*") if folder.is_dir()] if root.is_dir() else []
    for folder in folders:
        key = folder.name.lstrip(".").partition(".")[0]
        used = root / f"{key}.used"
        try:
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            last = (used if used.exists() else folder).stat().st_mtime
        except OSError:
            continue  # Another process has just deleted it.
        found.append(Kept(folder.name, _about(folder), size, last, _is_used(root, key)))
    return sorted(found, key=lambda entry: -entry.used)


def _is_used(root: Path, key: str) -> bool:
    if not (root / f"{key}.used").exists():
        return False
    with _alone(root, key) as alone:
        return not alone


def _about(folder: Path) -> str:
    if folder.name.startswith("."):
        return "unfinished"
    try:
        sealed = json.loads((folder / META).read_bytes())
    except (OSError, ValueError):
        return "damaged"
    return str(sealed.get("about", "")) if isinstance(sealed, dict) else "damaged"


def remove(root: Path, key: str) -> bool:
    """Delete the entry ``key``; return whether it could be: not one that is in use.

    Its `.used` file stays: who waits for the lock on it must find the same file as who comes next.
    """
    with _alone(root, key.lstrip(".").partition(".")[0]) as alone:
        if alone:
            shutil.rmtree(root / key, ignore_errors=True)
    return alone and not (root / key).exists()


def given_limit() -> int | None:
    """Return the bytes that entries may take together, of the environment; None: it says none.

    Raises:
        UserError: where the variable holds no size.
    """
    text = os.environ.get(SIZE_VARIABLE, "").strip()
    if not text:
        return None
    given = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|MB|GB|TB)", text.upper())
    if given is None:
        raise UserError(
            f"{SIZE_VARIABLE} must be a size like 20GB or 500MB (got {text!r}); or unset it"
        )
    return int(float(given[1]) * UNITS[given[2]])


def usual_limit(root: Path, total: int) -> int:
    """Return the bytes that entries below ``root``, ``total`` now, may take where nobody says."""
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    return min((shutil.disk_usage(there).free + total) // SHARE, MOST)


def make_room(root: Path, given: int | None, keep: str) -> None:
    """Delete entries, the least recently used first, until the limit holds all others.

    Those in use stay, and so does the entry ``keep``. The limit is ``given`` bytes; where that is
    None it is the `usual_limit`, and what was used in the last hour stays, too.
    """
    there = entries(root)
    total = sum(entry.size for entry in there)
    limit = usual_limit(root, total) if given is None else given
    spared = time.time() - SPARED_SECONDS if given is None else float("inf")
    for entry in reversed(there):
        if total <= limit or entry.used > spared:
            return
        if entry.key != keep and not entry.in_use and remove(root, entry.key):
            total -= entry.size


def older_than(found: list[Kept], days: float) -> list[Kept]:
    """Return those of ``found`` that were last used more than so many days ago."""
    before = time.time() - 86_400 * days
    return [entry for entry in found if entry.used < before]
