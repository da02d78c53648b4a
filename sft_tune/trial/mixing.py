"""Mixup and cutmix: each image of a batch mixed with another, and so are their targets.

Drawn from torch's global CPU generator, whatever the device, so that a resume is exact.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data import Batch

DEFAULT_ALPHA = {"mixup": 0.2, "cutmix": 1.0}


def mixed(batch: Batch, training: TrainingSpec) -> Batch:
    """Return ``batch`` mixed as ``training`` says, with the partners' targets and its own share.

    The share of an image itself is drawn from Beta(alpha, alpha), one for the batch. ``mixup``
    (Zhang et al. 2018) adds the images up in these shares, ``cutmix`` (Yun et al. 2019) pastes a
    box of the partner, whose area within the image is then its share.
    """
    if training.mix == "none":
        return batch
    alpha = training.mix_alpha or DEFAULT_ALPHA[training.mix]
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    pixels = batch.inputs["pixel_values"]
    partners = torch.randperm(len(pixels)).to(pixels.device, non_blocking=True)
    others = pixels[partners]
    if training.mix == "mixup":
        pixels = torch.lerp(others, pixels, share)
    else:
        height, width = pixels.shape[2:]
        top, bottom = _span(height, math.sqrt(1 - share))
        left, right = _span(width, math.sqrt(1 - share))
        pixels = pixels.clone()
        pixels[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    return dataclasses.replace(
        batch,
        inputs={**batch.inputs, "pixel_values": pixels},
        partners=batch.targets[partners],
        share=share,
    )


def sides(batch: Batch) -> list[Batch]:
    """Return the batch with its own targets, and where it is mixed with its partners'."""
    if batch.partners is None:
        return [batch]
    return [batch, dataclasses.replace(batch, targets=batch.partners)]


def _span(length: int, share: float) -> tuple[int, int]:
    """Return begin and end of ``share`` of ``length`` around a random place, cut to the image."""
    half = int(length * share) // 2
    center = int(torch.randint(length, ()))
    return max(center - half, 0), min(center + half, length)
