"""Augmentation beyond flips: each image and token on its own, and all from one generator."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data.augment import Augmentation


def images(count: int = 16, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(0, 256, (1, 3, side, side), generator=generator, dtype=torch.uint8)
    return one.repeat(count, 1, 1, 1)


KINDS: list[dict[str, Any]] = [
    {"auto_augment": "randaugment", "magnitude": 12},
    {"auto_augment": "trivialaugment"},
    {"color_jitter": 0.4},
    {"erasing": 0.9},
    {"auto_augment": "trivialaugment", "color_jitter": 0.4, "erasing": 0.5},
]


@pytest.mark.parametrize("settings", KINDS)
def test_each_image_is_changed_on_its_own(settings: dict[str, Any]) -> None:
    torch.manual_seed(1)
    pixels = images()
    changed = Augmentation(TrainingSpec(**settings)).images(pixels)
    assert (changed.shape, changed.dtype) == (pixels.shape, torch.uint8)
    assert len({image.numpy().tobytes() for image in changed}) > 3
    assert torch.equal(pixels, images())


@pytest.mark.parametrize("settings", KINDS)
def test_all_is_drawn_from_torchs_generator(settings: dict[str, Any]) -> None:
    augmentation = Augmentation(TrainingSpec(**settings))
    state = torch.get_rng_state()
    first = augmentation.images(images())
    random.seed(9)
    np.random.seed(9)
    torch.set_rng_state(state)
    assert torch.equal(augmentation.images(images()), first)


def test_nothing_asked_for_draws_nothing() -> None:
    state = torch.get_rng_state()
    pixels = images()
    assert Augmentation(TrainingSpec()).images(pixels) is pixels
    assert torch.equal(torch.get_rng_state(), state)


def test_an_erased_box_is_black_and_as_often_as_asked() -> None:
    torch.manual_seed(0)
    pixels = images(400).clamp_min(1)
    erased = Augmentation(TrainingSpec(erasing=0.25)).images(pixels)
    touched = (erased == 0).any(dim=3).any(dim=2).any(dim=1)
    assert 0.18 < touched.float().mean().item() < 0.32
    assert torch.equal(erased[~touched], pixels[~touched])
    kept = erased != 0
    assert torch.equal(erased[kept], pixels[kept])


def test_colour_jitter_leaves_shapes_where_they_are() -> None:
    torch.manual_seed(0)
    flat = torch.full((8, 3, 8, 8), 100, dtype=torch.uint8)
    changed = Augmentation(TrainingSpec(color_jitter=0.3)).images(flat)
    assert all(len(torch.unique(image[0])) == 1 for image in changed)
    assert 70 <= changed.min() and changed.max() <= 130 and len(torch.unique(changed)) > 4


def test_tokens_are_masked_as_often_as_asked_but_never_special_ones() -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 50, (100, 40))
    ids[:, 0], ids[:, 30:] = 2, 0
    mask = (torch.arange(40) < 30).long().expand(100, 40)
    augmentation = Augmentation(TrainingSpec(token_masking=0.2), mask_id=4, special_ids=(0, 2, 4))
    inputs = augmentation.tokens({"input_ids": ids, "attention_mask": mask})
    masked = inputs["input_ids"] == 4
    assert 0.17 < masked[:, 1:30].float().mean().item() < 0.23
    assert not masked[:, 0].any() and not masked[:, 30:].any()
    assert torch.equal(inputs["input_ids"][~masked], ids[~masked])
