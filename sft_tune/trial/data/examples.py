"""Labelled examples as a source hands them over, and what a source is."""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from sft_tune.errors import DataError

SplitName = Literal["train", "validation", "test"]
Facts = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""

READ_BYTES = 64 * 2**20
"""Data sets below this size are known by their contents, however they came to a machine."""


@dataclass(frozen=True)
class Examples:
    """Examples of one split, in the source's own order.

    Attributes:
        inputs: a text (str, or None where it is missing), or an image: a path, encoded bytes,
            a PIL image or a uint8 array [h, w] or [h, w, channels], or a sound: a path, encoded
            bytes or a dict with ``array`` [n] or [n, channels] and ``sampling_rate``. May be lazy.
        labels: the labels as written: str, int, bool, or None where it is missing.
        place: says where example ``i`` stands (a path, a file's line), for messages.
    """

    inputs: Sequence[Any]
    labels: Sequence[Any]
    place: Callable[[int], str]


class UnreadableError(DataError):
    """An image or a sound that cannot be read; ``place`` says which, ``why`` the reason."""

    def __init__(self, what: str, place: str, why: str) -> None:
        """Make the message of the three."""
        self.what, self.place, self.why = what, place, why
        super().__init__(
            f"the {what} at {place} cannot be read: {why}. Replace it, remove the example, or "
            "leave such out with data.skip_unreadable: true."
        )


class Source(Protocol):
    """Where examples come from. Nothing but `read` decodes an example."""

    def has(self, split: SplitName, *, ask: bool = True) -> bool | None:
        """Tell whether the source has a split of its own for ``split``.

        With ``ask`` false None is the answer where only reading the examples would tell.
        """

    def identity(self, split: SplitName) -> str:
        """Return a digest that changes when the examples of ``split`` may have changed."""

    def known_labels(self, split: SplitName) -> list[str] | None:
        """Return the labels of ``split``; None where only reading the examples would tell."""

    def read(self, split: SplitName) -> Examples:
        """Read ``split``.

        Raises:
            DataError: for a file, a column or an example that cannot be read.
        """


def digest(*parts: str | bytes) -> str:
    """Return a short digest of ``parts``; the borders between them count."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def files_identity(paths: Iterable[Path]) -> str:
    """Return a digest of files: of their places below their common folder, and what is in them.

    It is the same on every machine that has them. What is in them are their contents where all
    have less than `READ_BYTES` together, else their sizes and modification times. A file that is
    missing counts as such; the reader will say so.
    """
    found = [Path(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath([path.parent for path in found]) if found else ""
    return _identity(root, [(str(path), _facts(path)) for path in found])


def place_identity(path: Path) -> str:
    """Return a digest of a file's absolute path, size and modification time: of this machine."""
    return digest(str(path.absolute()), repr(_facts(path)))


def walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every file below ``folder``, in no order; hidden ones are left out.

    Links to folders are followed, each folder once.
    """
    left, seen = [str(folder)], set()
    while left:
        parent = left.pop()
        if (true_path := os.path.realpath(parent)) in seen:
            continue
        seen.add(true_path)
        with os.scandir(parent) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    left.append(entry.path)
                elif entry.is_file():
                    yield entry


def folder_identity(folder: Path, suffix: str = "") -> str:
    """Return a digest of all files below ``folder``, as `files_identity` does."""
    entries = walk(folder.absolute()) if folder.is_dir() else iter(())
    found = [
        (entry.path, (facts.st_size, facts.st_mtime_ns))
        for entry in entries
        if entry.name.endswith(suffix)
        for facts in (entry.stat(),)
    ]
    return _identity(str(folder.absolute()), sorted(found))


def _facts(path: Path) -> Facts | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _identity(root: str, files: list[tuple[str, Facts | None]]) -> str:
    lines = [(os.path.relpath(path, root), *(facts or ("missing",))) for path, facts in files]
    if sum(facts[0] for _, facts in files if facts is not None) >= READ_BYTES:
        return digest(repr(lines))
    return _contents_digest(root, tuple(lines))


@functools.lru_cache(maxsize=64)
def _contents_digest(root: str, lines: tuple[tuple[Any, ...], ...]) -> str:
    """Return a digest of the files ``lines`` below ``root``, read once for each modification."""
    parts: list[str | bytes] = []
    for name, *facts in lines:
        path = os.path.join(root, name)
        parts += [name, b"missing" if len(facts) == 1 else _contents(path)]
    return digest(*parts)


def _contents(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:
        return b"unreadable"


def listed(names: Iterable[Any], limit: int = 12) -> str:
    """Return ``names`` in one line for a message, the end left out when there are many."""
    shown = [str(name) for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def did_you_mean(name: str, known: Iterable[Any]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest of ``known``, or nothing."""
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def check_columns(
    columns: Iterable[str], wanted: dict[str, str], where: str, known: str = "columns"
) -> None:
    """Check that the columns named by the study file are there.

    Args:
        columns: the columns that the data has.
        wanted: setting of the study file (``text_column``) -> the column that it names.
        where: the file or source, for the message.
        known: what the columns are called there.

    Raises:
        DataError: for a column that is missing, with the nearest name and all that there are.
    """
    there = list(columns)
    for setting, name in wanted.items():
        if name not in there:
            raise DataError(
                f"{where} has no column '{name}'{did_you_mean(name, there) or '.'} "
                f"Its {known}: {listed(there) or 'none'}. Set data.{setting} to one of them."
            )


def reason(error: BaseException) -> str:
    """Return the first line of ``error`` for a message, with its type where that says more."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if isinstance(error, OSError | DataError) else f"{type(error).__name__}: {text}"


def item_place(what: str) -> Callable[[int], str]:
    """Return a `place` that says the position, counted from 1, in ``what``."""
    return lambda i: f"example {i + 1} of {what}"
