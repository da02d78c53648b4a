"""The training loss as a sum of shares, so that micro-batches add up to exactly their batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# What torch's cross entropy leaves out: targets of tokens that do not count.
IGNORED = -100


def weight(targets: Tensor) -> int:
    """Return what the mean loss of ``targets`` is divided by: how many of them count.

    Args:
        targets: class indices, int64 [b]; or of tokens, int64 [b, length], some `IGNORED`.
    """
    if targets.ndim == 1:
        return len(targets)  # without a look at the device
    return int((targets != IGNORED).sum())


def share_of_loss(logits: Tensor, targets: Tensor, total: int, label_smoothing: float) -> Tensor:
    """Return what these examples add to the mean loss of their batch.

    Args:
        logits: of the examples, [b, classes], or [b, classes, length] for tokens.
        targets: of the examples (see `weight`).
        total: the `weight` of the whole batch, these examples included.
        label_smoothing: share of the target that is spread over all classes.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    whole = weight(targets) == total
    loss = functional.cross_entropy(
        logits,
        targets,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="mean" if whole else "sum",
    )
    return loss if whole else loss / total
