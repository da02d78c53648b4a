"""Images with boxes as arrays: shrunk to what the detector sees, the boxes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sft_tune.errors import DataError
from sft_tune.trial.data.arrays import array_path
from sft_tune.trial.data.boxes import Boxes
from sft_tune.trial.data.cache import ArrayWriter, save
from sft_tune.trial.data.examples import Examples, UnreadableError
from sft_tune.trial.data.images import image_size, in_order, read_image

# Annotation tools round: what stands out by no more than this is cut off.
TOLERANCE = 1.0
SHOWN = 3
# Torchvision's detectors: the shorter side that they resize to, and the most of the longer one.
USUAL_SIDES = (800, 1333)
OTHER_SIDES = {"fasterrcnn_mobilenet_v3_large_320_fpn": (320, 640)}
# Those that take images of one size only, whatever the proportions.
FIXED_SIDES = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}
_CHUNK = 16


def sides(model_name: str, image_size: int | None) -> tuple[int, int]:
    """Return the shorter side that a detector resizes images to, and the most of the longer."""
    name = model_name.partition(":")[2]
    if name in FIXED_SIDES:
        return FIXED_SIDES[name], 2**31
    if image_size is None:
        return OTHER_SIDES.get(name, USUAL_SIDES)
    shorter, longer = USUAL_SIDES
    return image_size, round(image_size * longer / shorter)


@dataclass(frozen=True)
class BoxEncoder:
    """Writes images of any sizes and their boxes as arrays.

    Attributes:
        shorter: images whose shorter side is longer than this are shrunk, boxes with them: no
            more than this is seen by the detector.
        longer: the same of the longer side.
    """

    shorter: int
    longer: int

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the arrays, besides images and boxes."""
        sizes = [self.shorter, self.longer]
        return {"kind": "boxes", "sizes": sizes, "pillow": version("pillow")}

    def write(
        self, examples: Examples, rows: NDArray[np.int64], folder: Path, split: str
    ) -> dict[str, Any]:
        """Write the arrays of a `BoxSplit`; return facts.

        Raises:
            UnreadableError: for the first image that cannot be read.
            DataError: for boxes that are not on their image.
        """
        own = np.array([image_size(examples, i) for i in rows.tolist()], dtype=np.int64)
        chosen = [examples.labels[i] for i in rows.tolist()]
        _check_inside(examples, rows, own, chosen)
        sizes = np.array([self._shrunk(*size) for size in own.tolist()], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(3 * sizes.prod(axis=1))]).astype(np.int64)

        def decode(part: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
            return [_decoded(examples, int(rows[i]), own[i], sizes[i]) for i in part]

        parts = np.array_split(np.arange(len(rows)), max(1, len(rows) // _CHUNK))
        with ArrayWriter(
            array_path(folder, split, "pixels"), (int(offsets[-1]),), np.uint8
        ) as writer:
            for images in in_order(decode, parts):
                for image in images:
                    writer.append(image)
        scale = (sizes / own)[:, [1, 0, 1, 0]]
        boxes = [one.boxes * scale[i] for i, one in enumerate(chosen)]
        arrays: dict[str, NDArray[Any]] = {
            "offsets": offsets,
            "sizes": sizes,
            "boxes": np.concatenate(boxes).astype(np.float32),
            "box_labels": np.concatenate([one.labels for one in chosen]),
            "crowds": np.concatenate([one.crowds for one in chosen]).astype(np.uint8),
        }
        for what, array in arrays.items():
            save(array_path(folder, split, what), array)
        resized = int((sizes != own).any(axis=1).sum())
        return {"kind": "boxes", "size": None, "resized": resized}

    def _shrunk(self, height: int, width: int) -> tuple[int, int]:
        scale = min(self.shorter / min(height, width), self.longer / max(height, width))
        if scale >= 1:
            return height, width
        return max(1, round(height * scale)), max(1, round(width * scale))


def _check_inside(
    examples: Examples,
    rows: NDArray[np.int64],
    sizes: NDArray[np.int64],
    chosen: Sequence[Boxes],
) -> None:
    """Check that every box is on its image; cut off what stands out by rounding."""
    faults = []
    for row, (height, width), one in zip(rows.tolist(), sizes.tolist(), chosen, strict=True):
        low, high = np.zeros(4), np.array([width, height, width, height], dtype=np.float64)
        out = (one.boxes < low - TOLERANCE) | (one.boxes > high + TOLERANCE)
        for i in np.flatnonzero(out.any(axis=1)):
            corners = [float(f"{value:g}") for value in one.boxes[i]]
            faults.append(
                f"{examples.place(row)}: {one.names[i]} reaches from {corners[:2]} to "
                f"{corners[2:]}, its image is {width}x{height} pixels"
            )
        np.clip(one.boxes, low, high, out=one.boxes)
        empty = (one.boxes[:, 2:] <= one.boxes[:, :2]).any(axis=1)
        for i in np.flatnonzero(empty & ~out.any(axis=1)):
            faults.append(f"{examples.place(row)}: {one.names[i]} is at the edge, outside")
    if faults:
        raise DataError(
            f"{len(faults)} boxes are not on their image: {'; '.join(faults[:SHOWN])}"
            f"{'; ...' if faults[SHOWN:] else ''}. Mend or remove them, or say data.box_format."
        )


def _decoded(
    examples: Examples, i: int, own: NDArray[np.int64], size: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Return image ``i`` resized to ``size``, uint8 [3, h, w]."""
    image = read_image(examples, i)
    if [image.height, image.width] != own.tolist():
        raise UnreadableError("image", examples.place(i), "its size is not what its header says")
    if (size != own).any():
        # Pillow widens its filters when it shrinks an image: antialiased.
        height, width = size.tolist()
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)
