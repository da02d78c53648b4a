"""Semantic segmentation: a class for each pixel; cross-entropy over the pixels that count."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial import losses
from sft_tune.trial.data import Batch, Prepared, Split
from sft_tune.trial.losses import IGNORED
from sft_tune.trial.tasks.protocol import Outputs

ALWAYS = ("loss", "mean_iou", "pixel_accuracy")


def weight(batch: Batch) -> Tensor:
    """Return the number of pixels that count; 1 where none does, whose loss is 0."""
    return torch.as_tensor(losses.weight(batch.targets)).clamp_min(1)


def share_of_loss(
    outputs: Tensor, batch: Batch, total: int | Tensor, training: TrainingSpec
) -> Tensor:
    """Return the share of the mean cross-entropy a pixel, of logits [b, classes, h, w]."""
    return losses.share_of_loss(outputs, batch.targets, total, training.label_smoothing)


def keep(outputs: Tensor, batch: Batch) -> Outputs:
    """Return counts of pixels by class [b, classes], and the loss summed [b].

    ``both`` counts those that have the class and were given it, ``true`` those that have it,
    ``found`` those that were given it.
    """
    logits, targets = outputs.float(), batch.targets
    each = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    counted = targets != IGNORED
    given = logits.argmax(dim=1).masked_fill(~counted, IGNORED)
    classes = logits.shape[1]
    return {
        "both": _counts(torch.where(given == targets, targets, IGNORED), classes),
        "true": _counts(targets, classes),
        "found": _counts(given, classes),
        "loss": each.double().sum(dim=(1, 2)) if each.device.type != "mps" else each.sum((1, 2)),
    }


def metrics(names: Iterable[str], kept: Outputs, split: Split, data: Prepared) -> dict[str, float]:
    """Return `ALWAYS` and ``names``, over the pixels of the whole split that count.

    ``mean_iou`` is the mean, over the classes that are there or were found, of the pixels that
    both mask and answer give to the class, of those that either does (Everingham et al. 2010).
    """
    both, true, found = (kept[name].sum(dim=0).double() for name in ("both", "true", "found"))
    either = true + found - both
    there = either > 0
    values = {
        "loss": float(kept["loss"].double().sum() / true.sum()),
        "mean_iou": float((both[there] / either[there]).mean()),
        "pixel_accuracy": float(both.sum() / true.sum()),
    }
    return {name: values[name] for name in dict.fromkeys((*ALWAYS, *names))}


def _counts(indices: Tensor, classes: int) -> Tensor:
    """Return how often each class is in each of ``indices`` [b, h, w], int64 [b, classes]."""
    b = len(indices)
    # What is ignored goes to a class of its own, which is left out.
    flat = torch.where(indices == IGNORED, classes, indices).reshape(b, -1)
    counts = torch.zeros(b, classes + 1, dtype=torch.int64, device=indices.device)
    return counts.scatter_add_(1, flat, torch.ones_like(flat))[:, :classes]
