"""Augmentation beyond flips and crops: by torchvision's transforms, and masked tokens.

All is drawn from torch's global CPU generator, whatever the device, so that a checkpoint of its
state resumes exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data.rows import sent

# The usual strengths are 0.4 for brightness, contrast and saturation, and 0.1 for the hue.
HUE_SHARE = 0.25


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training batch.

    Attributes:
        training: the settings.
        mask_id: the token that masks others; None where no token is masked.
        special_ids: tokens that are never masked.
    """

    training: TrainingSpec
    mask_id: int | None = None
    special_ids: tuple[int, ...] = ()

    def images(self, pixels: Tensor) -> Tensor:
        """Return ``pixels`` (uint8 [b, 3, h, w]) with each image transformed on its own."""
        if not self._transforms:
            return pixels
        images = list(pixels)
        for transform in self._transforms:
            images = [transform(image) for image in images]
        return torch.stack(images)

    def tokens(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``inputs`` with tokens masked, each on its own, the special ones never."""
        if self.mask_id is None:
            return inputs
        ids = inputs["input_ids"]
        drawn = sent(torch.rand(ids.shape) < self.training.token_masking, ids.device)
        special = torch.isin(ids, sent(torch.tensor(self.special_ids), ids.device))
        masked = drawn & ~special & (inputs["attention_mask"] == 1)
        return {**inputs, "input_ids": ids.masked_fill(masked, self.mask_id)}

    @cached_property
    def _transforms(self) -> list[Callable[[Tensor], Tensor]]:
        from torchvision.transforms import v2

        training = self.training
        chosen: list[Any] = []
        if training.auto_augment == "randaugment":
            chosen.append(v2.RandAugment(num_ops=2, magnitude=training.magnitude))
        elif training.auto_augment == "trivialaugment":
            chosen.append(v2.TrivialAugmentWide())
        if strength := training.color_jitter:
            chosen.append(v2.ColorJitter(strength, strength, strength, strength * HUE_SHARE))
        if training.erasing:
            chosen.append(v2.RandomErasing(p=training.erasing))
        return chosen
