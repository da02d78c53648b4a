"""Logits and metrics of a whole split, without touching any random-number state."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from sft_tune.trial.data import Split, evaluation_batches, gather
from sft_tune.trial.device import autocast
from sft_tune.trial.metrics import compute
from sft_tune.trial.models import BuiltModel


def evaluate(
    model: BuiltModel,
    split: Split,
    metrics: Iterable[str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
) -> dict[str, float]:
    """Return the metrics of ``model`` on ``split``.

    The module is left in evaluation mode: the caller sets it back to training.
    """
    logits, targets = predict(model, split, device=device, dtype=dtype, batch_size=batch_size)
    return compute(metrics, logits, targets)


@torch.inference_mode()
def predict(
    model: BuiltModel,
    split: Split,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Return logits [n, classes] and targets [n] of ``split`` in its order, on the CPU."""
    model.module.eval()
    places: list[Tensor] = []
    parts: list[Tensor] = []
    for indices in evaluation_batches(split, batch_size):
        batch = gather(split, indices, device, normalize=model.normalize)
        with autocast(device, dtype):
            parts.append(model.logits(batch.inputs).float())
        places.append(indices)
    found = torch.cat(parts).cpu()
    logits = torch.empty_like(found)
    logits[torch.cat(places)] = found
    return logits, torch.from_numpy(np.array(split.targets, dtype=np.int64))
