"""Masks: a class for each pixel of an image, from PNG files of indices or with a palette."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.trial.data.arrays import array_path
from sft_tune.trial.data.cache import ArrayWriter
from sft_tune.trial.data.examples import Examples, reason
from sft_tune.trial.data.images import ImageEncoder, read_image
from sft_tune.trial.data.parts import Part
from sft_tune.trial.data.target_kinds import Found, Labels, Stats

Mask = NDArray[np.uint8]
# As stored: 0 does not count, so that what a crop fills up with does not either.
NOT_COUNTED = 0


@dataclass(frozen=True)
class OneMask:
    """A mask to be read again when it is written.

    Attributes:
        source: a path, encoded bytes, a PIL image or an array.
        ignored: the index of pixels that do not count.
    """

    source: Any
    ignored: int


class MaskTargets:
    """A class for each pixel; of an example how many pixels count is stored, int64 [n]."""

    def read(self, examples: Examples, data: DataSpec, where: str, labels: Labels | None) -> Found:
        """Return all examples; each mask is read once here, to know that its indices have names."""
        counts = np.zeros((len(examples.labels), 256), dtype=np.int64)
        for i in range(len(counts)):
            counts[i] = np.bincount(
                read_mask(examples.labels[i], examples.place(i)).ravel(), minlength=256
            )
        counts[:, data.ignore_index] = 0
        names = tuple(map(str, data.classes)) if data.classes is not None else labels
        if names is None:
            highest = int(np.flatnonzero(counts.sum(axis=0)).max(initial=0))
            names = tuple(str(index) for index in range(highest + 1))
        for i, row in enumerate(counts):
            if (bad := np.flatnonzero(row[len(names) :])).size:
                known = "data.classes names" if data.classes is not None else "train has"
                raise DataError(
                    f"{where}: the mask at {examples.place(i)} has the index "
                    f"{len(names) + int(bad[0])}, but {known} {len(names)} classes, from 0. "
                    "Mend the mask, data.classes or data.ignore_index."
                )
        if len(names) > 255:
            raise DataError(f"{where}: masks have more than 255 classes. Mend data.ignore_index.")
        if len(names) < 2:
            raise DataError(f"{where}: masks have one class only, {names[0]}. Mend the masks.")
        masks = [OneMask(value, data.ignore_index) for value in examples.labels]
        known_examples = Examples(examples.inputs, masks, examples.place)
        strata = np.zeros(len(masks), dtype=np.int64)
        part = Part(known_examples, np.arange(len(masks)), counts.sum(axis=1), strata)
        self.check(part, names, where, "Mend the source or data.ignore_index.")
        return Found(part, names)

    def check(self, part: Part, labels: Labels, where: str, remedy: str) -> None:
        """Check that there are examples, and pixels that count."""
        if not len(part.rows) or not part.targets.any():
            raise DataError(f"{where} has no pixel that counts. {remedy}")

    def check_train(self, part: Part, labels: Labels, where: str) -> None:
        """Check that a limit has left pixels that count."""
        self.check(part, labels, where, "Raise data.train_limit.")

    def counts(self, part: Part, labels: Labels) -> dict[str, int]:
        """Return nothing: examples have no label of their own."""
        return {}

    def finish(
        self, parts: Mapping[str, Part], stats: Stats | None
    ) -> tuple[dict[str, Part], Stats]:
        """Return ``parts`` as they are."""
        return dict(parts), {}


@dataclass(frozen=True)
class MaskEncoder:
    """Writes images and their masks as arrays.

    Attributes:
        size: height and width that both are resized to; None: their own, which must be equal.
    """

    size: tuple[int, int] | None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the arrays, besides the images and masks."""
        return {**ImageEncoder(self.size).identity, "masks": 1}

    def write(
        self, examples: Examples, rows: NDArray[np.int64], folder: Path, split: str
    ) -> dict[str, Any]:
        """Write the arrays ``pixels`` and ``masks`` of ``split``; return facts.

        Masks are resized to the nearest pixel, so that no class is made up between two others.

        Raises:
            UnreadableError: for the first image that cannot be read.
            MixedSizesError: where `size` is None and the images differ in size.
            DataError: for a mask that cannot be read, or that has another size than its image.
        """
        facts = ImageEncoder(self.size).write(examples, rows, folder, split)
        height, width = facts["size"]
        shape = (len(rows), height, width)
        with ArrayWriter(array_path(folder, split, "masks"), shape, np.uint8) as writer:
            for i in rows.tolist():
                mask = _counted(examples, i)
                size = read_image(examples, i).size
                if mask.shape != size[::-1]:
                    raise DataError(
                        f"the mask at {examples.place(i)} is of {mask.shape[1]}x{mask.shape[0]} "
                        f"pixels, its image of {size[0]}x{size[1]}. Make them of one size."
                    )
                if size != (width, height):
                    image = Image.fromarray(mask)
                    mask = np.asarray(image.resize((width, height), Image.Resampling.NEAREST))
                writer.append(mask[None])
        return facts


def _counted(examples: Examples, i: int) -> Mask:
    """Return mask ``i`` as it is stored: 1 + the index, `NOT_COUNTED` where it is ignored."""
    one: OneMask = examples.labels[i]
    mask = read_mask(one.source, examples.place(i))
    # An index of 255 that counts would be the 256th class, which no study can name.
    return np.where(mask == one.ignored, NOT_COUNTED, mask + np.uint8(1)).astype(np.uint8)


def read_mask(value: Any, place: str) -> Mask:
    """Return the indices of the mask ``value`` of the example at ``place``, uint8 [h, w].

    Raises:
        DataError: where it cannot be read, or holds no indices.
    """
    try:
        if isinstance(value, np.ndarray):
            if value.ndim != 2 or value.dtype.kind not in "biu":
                raise ValueError(f"an array of {value.dtype} {list(value.shape)} is no [h, w]")
            if value.size and (value.min() < 0 or value.max() > 255):
                raise ValueError("its indices are not within 0..255")
            return value.astype(np.uint8)
        if isinstance(value, Image.Image):
            return _indices(value)
        if isinstance(value, str | Path | bytes):
            with Image.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
                return _indices(image)
        raise TypeError("there is none" if value is None else f"a {type(value).__name__} is none")
    except MemoryError:
        raise
    # As with images: whatever a broken file leads a decoder to means the same for this mask.
    except Exception as error:
        name = value if isinstance(value, str | Path) else f"of {place}"
        raise DataError(
            f"the mask {name} cannot be read: {reason(error)}. Replace it, or remove the example."
        ) from error


def _indices(image: Image.Image) -> Mask:
    """Return the indices of ``image``; those of a palette are the palette's places."""
    if image.mode not in ("1", "L", "P"):
        raise ValueError(
            f"its mode is {image.mode}; write one channel of class indices, or a palette"
        )
    return np.asarray(image).astype(np.uint8)
