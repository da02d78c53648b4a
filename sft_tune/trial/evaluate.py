"""Logits and metrics of a whole split, without touching any random-number state."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from sft_tune.trial.data import Split, evaluation_batches, gather
from sft_tune.trial.device import autocast
from sft_tune.trial.metrics import compute
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.portions import Portion, within_memory


def evaluate(
    model: BuiltModel,
    split: Split,
    metrics: Iterable[str],
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    portion: Portion | None = None,
) -> dict[str, float]:
    """Return the metrics of ``model`` on ``split`` (arguments: see `predict`).

    The module is left in evaluation mode: the caller sets it back to training.
    """
    logits, targets = predict(
        model, split, device=device, dtype=dtype, batch_size=batch_size, portion=portion
    )
    return compute(metrics, logits, targets)


@torch.inference_mode()
def predict(
    model: BuiltModel,
    split: Split,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    portion: Portion | None = None,
) -> tuple[Tensor, Tensor]:
    """Return logits [n, classes] and targets [n] of ``split`` in its order, on the CPU.

    Args:
        model: it is set to evaluation.
        split: the examples.
        device: where the model is.
        dtype: that matrix products run in.
        batch_size: examples per batch.
        portion: how many of them go through the model at once; it keeps what fits.

    Raises:
        RuntimeError, MemoryError: when not even one example fits into memory.
    """
    model.module.eval()
    portion = portion or Portion()
    places: list[Tensor] = []
    parts: list[Tensor] = []
    for indices in evaluation_batches(split, batch_size):
        work = functools.partial(_logits, model, split, indices, device, dtype)
        parts += within_memory(portion, len(indices), work, device=device)
        places.append(indices)
    found = torch.cat(parts).cpu()
    logits = torch.empty_like(found)
    logits[torch.cat(places)] = found
    return logits, torch.from_numpy(np.array(split.targets, dtype=np.int64))


def _logits(
    model: BuiltModel,
    split: Split,
    indices: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    sizes: list[int],
) -> list[Tensor]:
    """Return the logits of ``indices`` in parts of ``sizes``."""
    found = []
    for rows in indices.split_with_sizes(sizes):
        batch = gather(split, rows, device, normalize=model.normalize)
        with autocast(device, dtype):
            found.append(model.logits(batch.inputs).float())
    return found
