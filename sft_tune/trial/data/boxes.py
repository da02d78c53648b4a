"""Boxes: what is on an image and where, from lists of numbers or COCO's annotations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.trial.data.examples import Examples, did_you_mean, listed
from sft_tune.trial.data.labels import class_indices, in_label_order, label_name
from sft_tune.trial.data.parts import Part
from sft_tune.trial.data.target_kinds import Found, Labels, Stats


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
