"""Batches: gathered from prepared arrays, augmented and normalized on the device."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sft_tune.trial.data.arrays import (
    UNTAGGED,
    AudioSplit,
    BoxSplit,
    FeatureSplit,
    Split,
    TextSplit,
)
from sft_tune.trial.data.augment import Augmentation
from sft_tune.trial.data.rows import Rows, moved, sent, sounds, texts

Normalize = tuple[Sequence[float], Sequence[float]]
HALF: Normalize = ((0.5,), (0.5,))

POOL_BATCHES = 50
"""Batches of a pool that is sorted by length: with more, each epoch would have the same ones."""
LEAST_POOLS = 4
"""A small data set has smaller pools: 160 texts of one epoch, sorted as one pool, took a fifth less
time and came to an accuracy of 0.879 in place of 0.915 (MiniLM, means of 12)."""


@dataclass(frozen=True)
class Batch:
    """A batch on a device.

    Attributes:
        inputs: keyword arguments of a model: ``pixel_values`` float32 [b, 3, h, w], normalized;
            or ``input_ids``, ``attention_mask`` and perhaps ``token_type_ids``, int64 [b, length];
        with ``segments`` of the same shape in place of the mask where rows hold several examples;
        with ``labels`` int64 [b, target length], the targets, where a text is to be written;
            or ``input_values`` or ``input_features`` float32 [b, length, ...] of sounds, perhaps
            with ``attention_mask``;
            or ``features`` float32 [b, ...] of a frozen backbone. Of images with boxes
            ``pixel_values`` are 0..1, not normalized, and filled up with 0 to the largest of the
            batch; ``sizes`` int64 [b, 2] (height and width of each), ``boxes`` float32 [b, k, 4]
            and ``box_labels`` int64 [b, k], `UNTAGGED` where an image has fewer.
        targets: as the task has them, [b, ...].
        partners: targets of the examples that these are mixed with; None where they are not.
        share: of each example itself in what it is mixed to.
    """

    inputs: dict[str, Tensor]
    targets: Tensor
    partners: Tensor | None = None
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.targets)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of ``n`` examples in ``epoch``: a permutation, int64 [n].

    It depends on its arguments only, never on the global random state, so that a resumed trial
    finds its place again.
    """
    return permutation(n, f"{seed}/epoch/{epoch}")


def bucketed_order(
    lengths: NDArray[np.int64], batch_size: int, whole_batches: int, seed: int, epoch: int
) -> Tensor:
    """Return an order of the examples in which the batches hold texts of similar lengths.

    The examples are shuffled, cut into pools of many batches, sorted by length within each pool,
    and the batches are shuffled: each epoch has other batches, with little padding. The examples
    of the last batch, where it is not of the whole size, are drawn from all.

    Args:
        lengths: of the examples, [n].
        batch_size: examples per batch.
        whole_batches: how many batches of that size there are; the rest is one more.
        seed: of the order.
        epoch: whose order it is.

    Returns:
        A permutation, int64 [n]; it depends on the arguments only.
    """
    order = epoch_order(len(lengths), seed, epoch).numpy()
    count = whole_batches * batch_size
    pool = batch_size * max(1, min(whole_batches // LEAST_POOLS, POOL_BATCHES))
    sorted_ = [
        part[np.argsort(-lengths[part], kind="stable")]
        for part in (order[start : min(start + pool, count)] for start in range(0, count, pool))
    ]
    if not sorted_:
        return torch.from_numpy(order)
    batches = np.concatenate(sorted_).reshape(whole_batches, batch_size)
    shuffled = batches[permutation(whole_batches, f"{seed}/batches/{epoch}").numpy()]
    return torch.from_numpy(np.concatenate([shuffled.reshape(-1), order[count:]]))


def permutation(n: int, name: str) -> Tensor:
    """Return the permutation of ``n`` that ``name`` stands for, int64 [n]."""
    state = hashlib.sha256(name.encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(state[:8], "big") >> 1)
    return torch.randperm(n, generator=generator)


def evaluation_batches(
    split: Split | FeatureSplit, batch_size: int, rows: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield the indices of a split in batches, each index once, int64 [<= batch_size].

    Texts and sounds come sorted by length, the longest first: hardly any padding, and a batch
    that does not fit into memory fails at once. Put results back with ``out[indices] = results``.
    Of some ``rows`` of the split the places among them.
    """
    order = np.arange(len(split) if rows is None else len(rows))
    if isinstance(split, TextSplit | AudioSplit):
        lengths = split.lengths if rows is None else split.lengths[rows.numpy()]
        order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield torch.from_numpy(order[start : start + batch_size])


def gather(
    split: Split | FeatureSplit,
    indices: Tensor,
    device: str | torch.device,
    *,
    augment: str = "none",
    beyond: Augmentation | None = None,
    normalize: Normalize = HALF,
) -> Batch:
    """Return the examples ``indices`` of ``split`` as a batch on ``device``.

    Args:
        split: prepared arrays.
        indices: rows, int64 [b], on the CPU.
        device: where the batch is to be.
        augment: images: ``none``; ``flip`` (each mirrored with probability 1/2); ``flip_crop``
            (not with boxes; also moved by up to 1/8 of its sides, black where nothing is left).
            Drawn from torch's global CPU generator, whatever the device, so that a checkpoint of
            its state resumes exactly. Texts are not flipped.
        beyond: what else is done to images, or to tokens.
        normalize: mean and deviation of each channel, pixels scaled to 0..1.
    """
    rows = Rows(indices, torch.device(device))
    if isinstance(split, TextSplit):
        inputs, targets = texts(split, rows)
        return Batch(inputs if beyond is None else beyond.tokens(inputs), targets)
    targets = rows.of(split.targets)
    if isinstance(split, FeatureSplit):
        return Batch({"features": rows.of(split.features)}, targets)
    if isinstance(split, BoxSplit):
        return Batch(_with_boxes(split, rows.host, rows.device, augment, beyond), targets)
    if isinstance(split, AudioSplit):
        return Batch(sounds(split, rows), targets)
    pixels = rows.of(split.pixels)
    if split.masks is not None:
        # One more channel, so that a mask is mirrored and moved with its image.
        masks = rows.of(split.masks)
        pixels = torch.cat([pixels, masks[:, None]], dim=1)
    pixels = augmented(pixels, augment)
    if split.masks is not None:
        counted = pixels[:, 3].long()
        # By `torch.where` the number would be sent to the device, and waited for.
        targets = (counted - 1).masked_fill_(counted == 0, UNTAGGED)
        pixels = pixels[:, :3].contiguous()
    if beyond is not None:
        pixels = beyond.images(pixels)
    return Batch({"pixel_values": normalized(pixels, normalize)}, targets)


def _with_boxes(
    split: BoxSplit,
    rows: NDArray[np.int64],
    device: torch.device,
    augment: str,
    beyond: Augmentation | None,
) -> dict[str, Tensor]:
    """Return images and boxes of ``rows``, mirrored together where that is asked for."""
    if augment not in ("none", "flip"):
        raise ValueError(f"unknown augmentation of boxes {augment!r}; known: none, flip")
    b, sizes = len(rows), split.sizes[rows]
    mirrored = (torch.rand(b) < 0.5).tolist() if augment == "flip" else [False] * b
    height, width = sizes.max(axis=0).tolist()
    pixels = torch.zeros(b, 3, height, width, dtype=torch.uint8)
    found = []
    for i, row in enumerate(rows.tolist()):
        image, (h, w) = split.image(row), sizes[i].tolist()
        start, end = split.box_offsets[row : row + 2]
        kept = split.crowds[start:end] == 0
        boxes, labels = split.boxes[start:end][kept], split.box_labels[start:end][kept]
        if mirrored[i]:
            image = image[:, :, ::-1]
            boxes = np.stack([w - boxes[:, 2], boxes[:, 1], w - boxes[:, 0], boxes[:, 3]], axis=1)
        tensor = torch.from_numpy(image.copy())
        pixels[i, :, :h, :w] = tensor if beyond is None else beyond.images(tensor[None])[0]
        found.append((boxes, labels))
    most = max(len(labels) for _, labels in found)
    all_boxes = np.zeros((b, most, 4), dtype=np.float32)
    all_labels = np.full((b, most), UNTAGGED, dtype=np.int64)
    for i, (boxes, labels) in enumerate(found):
        all_boxes[i, : len(labels)], all_labels[i, : len(labels)] = boxes, labels
    return {
        "pixel_values": moved(pixels.numpy(), device).to(torch.float32) / 255,
        "sizes": moved(sizes, device),
        "boxes": moved(all_boxes, device),
        "box_labels": moved(all_labels, device),
    }


def augmented(pixels: Tensor, augment: str) -> Tensor:
    """Return ``pixels`` [b, c, h, w] with each image augmented on its own.

    Raises:
        ValueError: for an unknown kind of augmentation.
    """
    if augment == "none":
        return pixels
    if augment not in ("flip", "flip_crop"):
        raise ValueError(f"unknown augmentation {augment!r}; known: none, flip, flip_crop")
    b, _, h, w = pixels.shape
    mirrored = sent((torch.rand(b) < 0.5).nonzero()[:, 0], pixels.device)
    pixels = pixels.index_copy(0, mirrored, pixels.index_select(0, mirrored).flip(3))
    if augment == "flip":
        return pixels
    dy, dx = max(1, h // 8), max(1, w // 8)
    top, left = torch.randint(0, 2 * dy + 1, (b,)), torch.randint(0, 2 * dx + 1, (b,))
    return _cropped(functional.pad(pixels, (dx, dx, dy, dy)), top, left, h, w)


def _cropped(pixels: Tensor, top: Tensor, left: Tensor, h: int, w: int) -> Tensor:
    """Return from each image [c, height, width] the window [c, h, w] at its own place.

    Each row of a window is one run of memory; copying rows is several times quicker than
    picking pixels.
    """
    b, c, height, width = pixels.shape
    image, channel, row = c * height * width, height * width, width
    first = torch.arange(b) * image + top * row + left
    starts = first[:, None, None] + (torch.arange(c) * channel)[:, None] + torch.arange(h) * row
    # Every run of w pixels, wherever it begins, as overlapping rows of one view.
    runs = pixels.reshape(-1).as_strided((pixels.numel() - w + 1, w), (1, 1))
    return runs.index_select(0, sent(starts.flatten(), pixels.device)).view(b, c, h, w)


def normalized(pixels: Tensor, normalize: Normalize) -> Tensor:
    """Return ``(pixels / 255 - mean) / deviation``, float32, of uint8 ``pixels`` [b, c, h, w]."""
    mean, deviation = normalize
    scale, shift = _scale_and_shift(tuple(mean), tuple(deviation), pixels.device)
    return pixels.to(torch.float32).mul_(scale).add_(shift)


@functools.lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], deviation: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return what to multiply by and to add, [1, c, 1, 1]; kept, since a copy would wait."""
    m = torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)
    s = torch.tensor(deviation, dtype=torch.float64).view(1, -1, 1, 1)
    return (1 / (255 * s)).to(device, torch.float32), (-m / s).to(device, torch.float32)
