"""Batches of data that lies whole on a device are those of data that is sent to it, bit for bit.

The device is the CPU here: on it nothing is held unless a test asks for it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data import (
    AudioSplit,
    Batch,
    BoxSplit,
    FeatureSplit,
    ImageSplit,
    TextSplit,
    gather,
)
from sft_tune.trial.data.arrays import Ragged
from sft_tune.trial.data.augment import Augmentation
from sft_tune.trial.data.resident import arrays_of, find, held_bytes, hold, release

CPU = torch.device("cpu")
PLENTY = 2**30
ROWS = torch.tensor([7, 2, 2, 11, 0])


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    yield
    release(CPU)


def images(masks: bool = False) -> ImageSplit:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 3, 8, 16), dtype=np.uint8)
    drawn = rng.integers(0, 4, (12, 8, 16), dtype=np.uint8) if masks else None
    return ImageSplit(pixels, np.arange(12) % 3, drawn)


def texts(**settings: Any) -> TextSplit:
    rng = np.random.default_rng(1)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 9, 12))]).astype(np.int64)
    total = int(offsets[-1])
    for name in ("tags", "segments"):
        if name in settings:
            settings[name] = rng.integers(1, 3, total, dtype=np.int32)
    if "token_types" in settings:
        settings["token_types"] = rng.integers(0, 2, total, dtype=np.uint8)
    if "answers" in settings:
        ends = np.concatenate([[0], np.cumsum(rng.integers(1, 5, 12))]).astype(np.int64)
        settings["answers"] = Ragged(rng.integers(1, 99, int(ends[-1]), dtype=np.int32), ends)
    tokens = rng.integers(1, 99, total, dtype=np.int32)
    return TextSplit(tokens, offsets, rng.random((12, 2), np.float32), pad_id=5, **settings)


def sounds(*width: int, **settings: Any) -> AudioSplit:
    rng = np.random.default_rng(3)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 9, 12))]).astype(np.int64)
    values = rng.random((int(offsets[-1]), *width), np.float32)
    return AudioSplit(values, offsets, np.arange(12) % 2, **settings)


SPLITS = {
    "images": images(),
    "masks": images(masks=True),
    "features": FeatureSplit(np.random.default_rng(2).random((12, 4), np.float32), np.arange(12)),
    "texts": texts(),
    "padded on the left": texts(token_types=True, pad_type=3, pad_left=True),
    "tags": texts(tags=True),
    "packed": texts(segments=True, tags=True),
    "answers": texts(answers=True),
    "sounds": sounds(),
    "frames": sounds(4, key="input_features", masked=True),
}


def batch_of(split: Any, **options: Any) -> Batch:
    torch.manual_seed(0)
    return gather(split, ROWS, "cpu", **options)


def check_same(one: Batch, other: Batch) -> None:
    assert one.inputs.keys() == other.inputs.keys()
    for ours, theirs in [
        (one.targets, other.targets),
        *((one.inputs[name], other.inputs[name]) for name in one.inputs),
    ]:
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()


def forgotten(split: Any) -> Any:
    """Overwrite what ``split`` is gathered from, so that only what is held has it."""
    for array in arrays_of(split).values():
        array[...] = 0
    return split


def copied(split: Any) -> Any:
    """Return ``split`` with arrays of its own."""
    arrays = {name: array.copy() for name, array in arrays_of(split).items()}
    if "answers" in arrays:
        arrays["answers"] = Ragged(arrays["answers"], split.answers.offsets)
    return replace(split, **arrays)


@pytest.mark.parametrize("kind", SPLITS)
def test_a_batch_of_held_data_is_the_same_bits(kind: str) -> None:
    split = copied(SPLITS[kind])
    expected = batch_of(split, augment="flip_crop")
    hold("digits", {"train": split}, CPU, most=PLENTY)
    assert held_bytes(CPU) == sum(array.nbytes for array in arrays_of(split).values())
    check_same(batch_of(forgotten(split), augment="flip_crop"), expected)


def test_tokens_of_held_texts_are_masked_as_those_of_others() -> None:
    split, masking = copied(SPLITS["texts"]), TrainingSpec(token_masking=0.5)
    beyond = Augmentation(masking, mask_id=77, special_ids=(5, 9))
    expected = batch_of(split, beyond=beyond)
    assert (expected.inputs["input_ids"] == 77).any()
    hold("reviews", {"train": split}, CPU, most=PLENTY)
    check_same(batch_of(forgotten(split), beyond=beyond), expected)


def test_the_next_trial_finds_what_the_one_before_has_held() -> None:
    first = copied(SPLITS["images"])
    expected = batch_of(first)
    hold("digits", {"train": first}, CPU, most=PLENTY)
    again = forgotten(copied(first))  # its arrays, opened anew; nothing is copied from them
    hold("digits", {"train": again}, CPU, most=0)
    check_same(batch_of(again), expected)
    check_same(batch_of(first), expected)


def test_another_data_set_takes_the_place_of_the_one_before() -> None:
    first, second = copied(SPLITS["images"]), copied(SPLITS["texts"])
    hold("digits", {"train": first}, CPU, most=PLENTY)
    hold("reviews", {"train": second}, CPU, most=PLENTY)
    assert held_bytes(CPU) == sum(array.nbytes for array in arrays_of(second).values())
    assert find(first.pixels, CPU) is None
    check_same(batch_of(first), batch_of(SPLITS["images"]))


def test_what_has_no_room_is_not_held_and_the_rest_is() -> None:
    train, validation = copied(SPLITS["masks"]), copied(SPLITS["features"])
    size = sum(array.nbytes for array in arrays_of(train).values())
    hold("digits", {"train": train, "validation": validation}, CPU, most=size - 1)
    assert find(train.pixels, CPU) is None and find(train.masks, CPU) is None
    assert find(validation.features, CPU) is not None
    check_same(batch_of(train), batch_of(SPLITS["masks"]))


def test_on_a_cpu_and_without_an_identity_nothing_is_held() -> None:
    hold("digits", {"train": SPLITS["images"]}, CPU)
    hold("", {"train": SPLITS["images"]}, CPU, most=PLENTY)
    assert held_bytes(CPU) == 0
    assert not release(CPU)


def test_images_with_boxes_are_sent_as_ever() -> None:
    sizes = np.full((12, 2), 4, dtype=np.int64)
    boxes = BoxSplit(
        pixels=np.arange(12 * 48, dtype=np.uint8),
        offsets=np.arange(0, 13 * 48, 48),
        sizes=sizes,
        boxes=np.zeros((12, 4), np.float32),
        box_labels=np.zeros(12, np.int64),
        crowds=np.zeros(12, np.uint8),
        targets=np.ones(12, np.int64),
    )
    expected = batch_of(boxes)
    hold("photos", {"train": boxes}, CPU, most=PLENTY)
    assert held_bytes(CPU) == 0
    check_same(batch_of(boxes), expected)


def test_what_is_released_is_free_at_once() -> None:
    split = copied(SPLITS["features"])
    hold("digits", {"train": split}, CPU, most=PLENTY)
    tensor = find(split.features, CPU)
    assert tensor is not None
    held = weakref.ref(tensor)
    del tensor
    gc.disable()
    try:
        assert release(CPU) and held() is None
    finally:
        gc.enable()
    check_same(batch_of(split), batch_of(SPLITS["features"]))


def test_an_array_that_takes_the_place_of_one_that_is_gone_is_not_taken_for_it() -> None:
    split = copied(SPLITS["features"])
    hold("digits", {"train": split}, CPU, most=PLENTY)
    gone = id(split.features)
    del split
    gc.collect()
    others = [np.zeros((12, 4), np.float32) for _ in range(1000)]
    assert gone in map(id, others)
    assert all(find(other, CPU) is None for other in others)


def test_part_of_a_held_split_is_gathered_by_its_own_offsets() -> None:
    split = copied(SPLITS["texts"])
    hold("reviews", {"train": split}, CPU, most=PLENTY)
    part = replace(split, offsets=split.offsets[4:], targets=split.targets[4:])
    rows = torch.tensor([3, 0])
    found, expected = gather(part, rows, "cpu"), gather(SPLITS["texts"], rows + 4, "cpu")
    check_same(found, expected)
