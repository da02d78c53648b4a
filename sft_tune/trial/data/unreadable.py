"""Images and sounds that cannot be read: all named at once, or left out where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from sft_tune.errors import DataError
from sft_tune.spec.tasks import TASKS, Task
from sft_tune.trial.data.audio import read_sound
from sft_tune.trial.data.examples import Examples, UnreadableError, listed
from sft_tune.trial.data.images import chunks, in_order, read_image
from sft_tune.trial.data.parts import Part

READERS: dict[str, Callable[[Examples, int], object]] = {"image": read_image, "sound": read_sound}
"""What an `UnreadableError` says that it is of -> what raises it."""


def unreadable(
    parts: Iterable[tuple[Examples, NDArray[np.int64]]], first: UnreadableError
) -> DataError:
    """Return the error that tells of every input of ``parts`` that cannot be read.

    Args:
        parts: examples, and the rows of them that are used.
        first: the one that was met.
    """
    broken = [fault for part in parts for fault in _faults(*part, first.what).values()] or [first]
    if len(broken) == 1:
        return DataError(str(broken[0]))
    return DataError(
        f"{len(broken)} {first.what}s cannot be read: "
        f"{listed((fault.place for fault in broken), 5)}; the first: {broken[0].why}. Replace "
        "them, remove these examples, or leave such out with data.skip_unreadable: true."
    )


def only_readable(part: Part, task: Task) -> Part:
    """Return ``part`` without the examples whose input cannot be read."""
    what = {"image": "image", "audio": "sound"}[TASKS[task].input]
    broken = _faults(part.examples, part.rows, what)
    return part.take(np.flatnonzero(~np.isin(part.rows, list(broken)))) if broken else part


def _faults(examples: Examples, rows: NDArray[np.int64], what: str) -> dict[int, UnreadableError]:
    """Return what is wrong with those of ``rows`` that cannot be read."""

    def look(some: NDArray[np.int64]) -> dict[int, UnreadableError]:
        found = {}
        for i in some.tolist():
            try:
                READERS[what](examples, i)
            except UnreadableError as error:
                found[i] = error
        return found

    return {i: fault for found in in_order(look, chunks(rows)) for i, fault in found.items()}
