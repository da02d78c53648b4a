"""Boxes: what is on an image and where, from lists of numbers or COCO's annotations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sft_tune.errors import DataError
from sft_tune.spec.study import DataSpec
from sft_tune.trial.data.arrays import array_path
from sft_tune.trial.data.cache import ArrayWriter, save
from sft_tune.trial.data.examples import Examples, UnreadableError, did_you_mean, listed
from sft_tune.trial.data.images import image_size, in_order, read_image
from sft_tune.trial.data.labels import class_indices, in_label_order, label_name
from sft_tune.trial.data.parts import Part
from sft_tune.trial.data.target_kinds import Found, Labels, Stats

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


class Raw(NamedTuple):
    """The boxes of an image as its source has them.

    Attributes:
        boxes: each of four numbers.
        labels: one a box.
        form: of the numbers, ``xyxy`` or ``xywh``.
        crowds: whether each is a crowd; empty: none is.
        names: what each is called in messages; empty: by their order.
    """

    boxes: Sequence[Any]
    labels: Sequence[Any]
    form: str
    crowds: Sequence[bool] = ()
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Boxes:
    """The boxes of an image: float [k, 4] (left, top, right, bottom), classes and crowds [k]."""

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowds: NDArray[np.bool_]
    names: tuple[str, ...]


class BoxTargets:
    """Any number of boxes, each with a class; of an example their number is stored, int64 [n]."""

    def read(self, examples: Examples, data: DataSpec, where: str, labels: Labels | None) -> Found:
        """Return all examples; boxes of classes that are not wanted are left out."""
        raw = [_raw(value, data, examples.place(i)) for i, value in enumerate(examples.labels)]
        names = [_label_names(one, examples.place(i)) for i, one in enumerate(raw)]
        found = {name for some in names for name in some}
        wanted = labels
        if data.classes is not None:
            wanted = tuple(map(str, data.classes))
            if labels is None and (absent := in_label_order(set(wanted) - found)):
                raise DataError(
                    f"data.classes names {listed(absent)}, of which {where} has no box"
                    f"{did_you_mean(absent[0], found)} Its labels: {listed(in_label_order(found))}."
                )
            wanted = in_label_order(wanted) if labels is None else labels
        elif labels is None:
            wanted = in_label_order(found)
        elif unknown := in_label_order(found - set(labels)):
            i = next(i for i, some in enumerate(names) if unknown[0] in some)
            raise DataError(
                f"{where} has boxes with labels that train does not have: {listed(unknown)} (first "
                f"at {examples.place(i)}). Train has {listed(labels)}. Mend the labels, or choose "
                "with data.classes."
            )
        wanted = wanted or ()
        known = [
            _checked(one, some, wanted, examples.place(i))
            for i, (one, some) in enumerate(zip(raw, names, strict=True))
        ]
        counts = np.array([len(one.labels) for one in known], dtype=np.int64)
        chosen = Examples(examples.inputs, known, examples.place)
        part = Part(chosen, np.arange(len(known)), counts, _strata(known, len(wanted)))
        self.check(part, wanted, where, "Mend the source or data.classes.")
        return Found(part, wanted)

    def check(self, part: Part, labels: Labels, where: str, remedy: str) -> None:
        """Check that there are images, and a box among them."""
        if not len(part.rows):
            raise DataError(f"{where} has no examples. {remedy}")
        if not sum(int((~one.crowds).sum()) for one in _of(part)):
            raise DataError(f"{where} has no box on its {len(part.rows)} images. {remedy}")

    def check_train(self, part: Part, labels: Labels, where: str) -> None:
        """Check that a limit has left a box of every class."""
        if absent := [label for label, n in self.counts(part, labels).items() if not n]:
            raise DataError(
                f"{where} is left without boxes of {listed(absent)} on its {len(part.rows)} "
                "images. Raise data.train_limit, change data.split_seed, or choose with "
                "data.classes."
            )

    def counts(self, part: Part, labels: Labels) -> dict[str, int]:
        """Return the number of boxes of each class, crowds left out."""
        counts = np.zeros(len(labels), dtype=np.int64)
        for one in _of(part):
            counts += np.bincount(one.labels[~one.crowds], minlength=len(labels))
        return {label: int(count) for label, count in zip(labels, counts, strict=True)}

    def finish(
        self, parts: Mapping[str, Part], stats: Stats | None
    ) -> tuple[dict[str, Part], Stats]:
        """Return ``parts`` as they are."""
        return dict(parts), {}


def _strata(images: Sequence[Boxes], classes: int) -> NDArray[np.int64]:
    """Return the rarest class on each image, ``classes`` where it has none, [n].

    A split that keeps their shares has something of rare classes on both sides.
    """
    there = np.zeros((len(images), classes), dtype=bool)
    for i, one in enumerate(images):
        there[i, one.labels] = True
    often = there.sum(axis=0)
    rarest = np.where(there, often, len(images) + 1).argmin(axis=1) if classes else 0
    return np.where(there.any(axis=1), rarest, classes).astype(np.int64)


def _of(part: Part) -> Iterator[Boxes]:
    return (part.examples.labels[i] for i in part.rows.tolist())


def _raw(value: Any, data: DataSpec, place: str) -> Raw:
    """Return what a source has of an image, its lists known to be lists of one length."""
    if isinstance(value, Raw):
        return value
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise DataError(f"{place} has no pair (boxes, labels), but {str(value)[:60]!r}.")
    columns = (data.boxes_column, data.box_labels_column)
    lists = []
    for column, given in zip(columns, value, strict=True):
        listed_ = given.tolist() if hasattr(given, "tolist") else given
        if not isinstance(listed_, list | tuple):
            raise DataError(
                f"{place}: `{column}` is {str(given)[:60]!r}, no list. Write a list with one entry "
                "a box, [] for an image without boxes (in JSON lines or Parquet)."
            )
        lists.append(listed_)
    boxes, labels = lists
    if len(boxes) != len(labels):
        raise DataError(
            f"{place}: {len(boxes)} boxes in `{columns[0]}`, but {len(labels)} labels in "
            f"`{columns[1]}`. Give each box one label."
        )
    return Raw(boxes, labels, data.box_format)


def _label_names(raw: Raw, place: str) -> list[str]:
    names = []
    for i, label in enumerate(raw.labels):
        try:
            name = label_name(label)
        except TypeError:
            name = None
        if name is None:
            raise DataError(
                f"{place}: {_name(raw, i)} has the label {label!r}; a label is a string or an "
                "integer. Mend it, or remove the box."
            )
        names.append(name)
    return names


def _name(raw: Raw, i: int) -> str:
    return raw.names[i] if raw.names else f"box {i + 1}"


def _checked(raw: Raw, names: Sequence[str], labels: Labels, place: str) -> Boxes:
    """Return the boxes whose label is one of ``labels``."""
    kept = [i for i, name in enumerate(names) if name in labels]
    boxes = np.zeros((len(kept), 4))
    for row, i in enumerate(kept):
        boxes[row] = _corners(raw, i, place)
    return Boxes(
        boxes,
        class_indices([names[i] for i in kept], labels),
        np.array([bool(raw.crowds[i]) if raw.crowds else False for i in kept], dtype=bool),
        tuple(_name(raw, i) for i in kept),
    )


def _corners(raw: Raw, i: int, place: str) -> tuple[float, float, float, float]:
    box = raw.boxes[i]
    try:
        a, b, c, d = (float(value) for value in box)
    except (TypeError, ValueError):
        raise DataError(
            f"{place}: {_name(raw, i)} is {str(box)[:60]!r}, not four numbers. Mend it."
        ) from None
    right, bottom = (a + c, b + d) if raw.form == "xywh" else (c, d)
    if not all(map(math.isfinite, (a, b, right, bottom))):
        raise DataError(f"{place}: {_name(raw, i)} is {box}, not four finite numbers. Mend it.")
    if right <= a or bottom <= b:
        has = f"{right - a:g} wide and {bottom - b:g} high"
        remedy = "Mend or remove it"
        if raw.form == "xyxy" and (c > 0 and d > 0):
            remedy += "; of boxes with width and height say data.box_format: xywh"
        raise DataError(f"{place}: {_name(raw, i)}, {list(box)}, is {has}. {remedy}.")
    return a, b, right, bottom


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
