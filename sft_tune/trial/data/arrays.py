"""Prepared splits: flat arrays, usually memory-mapped, from which batches are gathered."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# The target of tokens that do not count: what torch's cross-entropy leaves out.
UNTAGGED = -100


@dataclass(frozen=True)
class ImageSplit:
    """Images of one split.

    Attributes:
        pixels: uint8 [n, 3, h, w], RGB.
        targets: of each image, [n] or [n, k] (see `sft_tune.trial.data.targets`).
        masks: of each pixel 1 + the index of its class, 0 where it does not count, uint8
            [n, h, w]; None where images have none.
    """

    pixels: NDArray[np.uint8]
    targets: NDArray[Any]
    masks: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.targets)


class Ragged(NamedTuple):
    """Rows of different lengths, end to end: row ``i`` is ``flat[offsets[i]:offsets[i + 1]]``."""

    flat: NDArray[Any]
    offsets: NDArray[np.int64]

    def text(self, i: int) -> str:
        """Return row ``i`` of UTF-8 bytes as a text."""
        return bytes(self.flat[self.offsets[i] : self.offsets[i + 1]]).decode()

    def before(self, other: Ragged) -> Ragged:
        """Return these rows, then those of ``other``."""
        offsets = np.concatenate([self.offsets, other.offsets[1:] + self.offsets[-1]])
        return Ragged(np.concatenate([self.flat, other.flat]), offsets)


@dataclass(frozen=True)
class TextSplit:
    """Tokenized texts of one split, end to end, without padding.

    Attributes:
        tokens: token ids of all texts, int32 [total].
        offsets: text ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``, int64 [n + 1].
        targets: of each text, [n] or [n, k] (see `sft_tune.trial.data.targets`).
        pad_id: token id to pad with.
        token_types: token type ids, uint8 [total]; None where all are zero.
        pad_type: token type id to pad with.
        pad_left: whether the model wants its padding before the text.
        tags: index of each token's tag or `UNTAGGED`, int32 [total]; None where texts have none.
            Of a language model the token that follows, where it is to be learnt.
        segments: which example of its row each token is of, counted from 1, int32 [total]; None
            where each row is one example.
        answers: tokens of the text to be written for each, int32; None where there is none.
        references: these texts themselves as UTF-8, uint8; None where nothing is measured by them.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    targets: NDArray[Any]
    pad_id: int
    token_types: NDArray[np.uint8] | None = None
    pad_type: int = 0
    pad_left: bool = False
    tags: NDArray[np.int32] | None = None
    segments: NDArray[np.int32] | None = None
    answers: Ragged | None = None
    references: Ragged | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each text, int64 [n]."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class BoxSplit:
    """Images of one split, each in its own size, with the boxes of what is on them.

    Attributes:
        pixels: of all images, end to end, uint8 [total].
        offsets: image ``i`` is ``pixels[offsets[i]:offsets[i + 1]]``, [3, h, w] RGB; int64 [n + 1].
        sizes: height and width of each image, int64 [n, 2].
        boxes: of all images, end to end: left, top, right, bottom in pixels, float32 [m, 4].
        box_labels: index of the class of each box, int64 [m].
        crowds: whether each box is of a crowd that is not told apart, uint8 [m]: such boxes are
            not trained on, and what is found in them counts neither way.
        targets: how many boxes each image has, int64 [n].
    """

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    box_labels: NDArray[np.int64]
    crowds: NDArray[np.uint8]
    targets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def box_offsets(self) -> NDArray[np.int64]:
        """The boxes of image ``i`` are ``boxes[box_offsets[i]:box_offsets[i + 1]]``, [n + 1]."""
        return np.concatenate([[0], np.cumsum(self.targets)]).astype(np.int64)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Return the pixels of image ``i``, [3, h, w]."""
        height, width = self.sizes[i]
        flat = self.pixels[self.offsets[i] : self.offsets[i + 1]]
        return flat.reshape(3, int(height), int(width))


@dataclass(frozen=True)
class FeatureSplit:
    """What a frozen backbone makes of each example of one split.

    Attributes:
        features: what enters the head, float32 [n, ...].
        targets: of each example, [n] or [n, k].
        identity: the key of the entry that they are kept in; empty where there is none.
    """

    features: NDArray[np.float32]
    targets: NDArray[Any]
    identity: str = ""

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class AudioSplit:
    """What a model reads of the sounds of one split, end to end, without padding.

    Attributes:
        values: samples [total], or frames [total, ...] of a spectrogram, float32.
        offsets: sound ``i`` is ``values[offsets[i]:offsets[i + 1]]``, int64 [n + 1].
        targets: of each sound, [n].
        key: what the model calls them: ``input_values`` or ``input_features``.
        masked: whether the model is told what is padding. Those that were pretrained without
            answer a little differently to a sound that was padded more.
    """

    values: NDArray[np.float32]
    offsets: NDArray[np.int64]
    targets: NDArray[Any]
    key: str = "input_values"
    masked: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of samples or frames of each sound, int64 [n]."""
        return np.diff(self.offsets)


Split = ImageSplit | TextSplit | AudioSplit | BoxSplit


@dataclass(frozen=True)
class Prepared:
    """A data set, ready to train on.

    Attributes:
        labels: names of the classes, in the order of their indices.
        train: training split.
        validation: validation split.
        test: test split; None unless asked for, or where there is none.
        facts: what was found, JSON-able: ``examples`` and ``class_counts`` by split,
            ``validation_from`` and ``test_from``, ``image_size`` [h, w] and ``resized``, or
            ``tokens`` (median, p95, max before the cut, limit, share cut) by split, or ``audio``
            (the same in seconds, and the rate), ...
        stats: of the training targets, what turns a model's outputs into the user's units
            (JSON-able); empty where the outputs need nothing.
        identity: the key of the entry of train and validation; empty where there is none.
        test_identity: the key of the entry of test; empty where it was not asked for.
        tokenizer: the folder of the tokenizer that the texts went through; None for others.
    """

    labels: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None
    facts: dict[str, Any]
    stats: dict[str, Any] = field(default_factory=dict)
    identity: str = ""
    test_identity: str = ""
    tokenizer: Path | None = None


def array_path(folder: Path, split: str, what: str) -> Path:
    """Return where an entry keeps one array of a split."""
    return folder / f"{split}_{what}.npy"


def load_split(folder: Path, split: str, meta: dict[str, Any]) -> Split:
    """Open one split of a complete entry; the large arrays stay on the disk.

    Args:
        folder: the entry's folder.
        split: name of the split.
        meta: what its encoder wrote for the split (``kind`` and, for texts, the padding).
    """
    targets = _mapped(array_path(folder, split, "targets"))
    if meta["kind"] == "image":
        masks = array_path(folder, split, "masks")
        return ImageSplit(
            _mapped(array_path(folder, split, "pixels")),
            targets,
            _mapped(masks) if masks.exists() else None,
        )
    if meta["kind"] == "boxes":
        parts = ("pixels", "offsets", "sizes", "boxes", "box_labels", "crowds")
        return BoxSplit(
            **{what: _mapped(array_path(folder, split, what)) for what in parts}, targets=targets
        )
    if meta["kind"] == "audio":
        return AudioSplit(
            values=_mapped(array_path(folder, split, "values")),
            offsets=_mapped(array_path(folder, split, "offsets")),
            targets=targets,
            key=meta["key"],
            masked=meta["masked"],
        )

    def optional(what: str) -> NDArray[Any] | None:
        path = array_path(folder, split, what)
        return _mapped(path) if path.exists() else None

    def ragged(flat: str, offsets: str) -> Ragged | None:
        values, ends = optional(flat), optional(offsets)
        return None if values is None or ends is None else Ragged(values, ends)

    return TextSplit(
        tokens=_mapped(array_path(folder, split, "tokens")),
        offsets=_mapped(array_path(folder, split, "offsets")),
        targets=targets,
        pad_id=meta["pad_id"],
        token_types=optional("types"),
        pad_type=meta["pad_type"],
        pad_left=meta["pad_left"],
        tags=optional("tags"),
        segments=optional("segments"),
        answers=ragged("answers", "answer_offsets"),
        references=ragged("references", "reference_offsets"),
    )


def _mapped(path: Path) -> NDArray[Any]:
    # A plain view: indexing the memmap class itself costs some microseconds more each time.
    return np.asarray(np.load(path, mmap_mode="r"))
