"""Train and validation as one training split: for the last fit, when nothing is chosen any more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_tune.trial.data.arrays import AudioSplit, BoxSplit, ImageSplit, Prepared, Split, TextSplit


def with_validation(data: Prepared) -> Prepared:
    """Return ``data`` with the examples of validation behind those of train, in the training split.

    The validation split stays: what is measured on it then says nothing about new examples.
    """
    identity = f"{data.identity}, train with validation" if data.identity else ""
    return replace(data, train=joined(data.train, data.validation), identity=identity)


def joined(first: Split, second: Split) -> Split:
    """Return the examples of ``first``, then those of ``second``, in memory.

    Raises:
        TypeError: when one holds images and the other texts, and the like.
    """
    targets = np.concatenate([first.targets, second.targets])
    if isinstance(first, ImageSplit) and isinstance(second, ImageSplit):
        masks = None
        if first.masks is not None and second.masks is not None:
            masks = np.concatenate([first.masks, second.masks])
        pixels = np.concatenate([first.pixels, second.pixels])
        return replace(first, pixels=pixels, targets=targets, masks=masks)
    if isinstance(first, BoxSplit) and isinstance(second, BoxSplit):
        parts = ("pixels", "sizes", "boxes", "box_labels", "crowds")
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in parts
        }
        return BoxSplit(**arrays, offsets=_offsets(first, second), targets=targets)
    if isinstance(first, AudioSplit) and isinstance(second, AudioSplit):
        return replace(
            first,
            values=np.concatenate([first.values, second.values]),
            offsets=_offsets(first, second),
            targets=targets,
        )
    if not isinstance(first, TextSplit) or not isinstance(second, TextSplit):
        raise TypeError("inputs of two kinds cannot be joined")
    types = None
    if first.token_types is not None or second.token_types is not None:
        # Absent where all are zero.
        types = np.concatenate(
            [
                np.zeros(len(part.tokens), np.uint8)
                if part.token_types is None
                else part.token_types
                for part in (first, second)
            ]
        )
    tags = None
    if first.tags is not None and second.tags is not None:
        tags = np.concatenate([first.tags, second.tags])
    answers = None
    if first.answers is not None and second.answers is not None:
        answers = first.answers.before(second.answers)
    segments = None
    if first.segments is not None or second.segments is not None:
        # Where rows are single examples.
        segments = np.concatenate(
            [
                np.ones(len(part.tokens), np.int32) if part.segments is None else part.segments
                for part in (first, second)
            ]
        )
    return replace(
        first,
        tokens=np.concatenate([first.tokens, second.tokens]),
        offsets=_offsets(first, second),
        targets=targets,
        token_types=types,
        tags=tags,
        segments=segments,
        answers=answers,
    )


def _offsets(
    first: TextSplit | AudioSplit | BoxSplit, second: TextSplit | AudioSplit | BoxSplit
) -> NDArray[np.int64]:
    return np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]])
