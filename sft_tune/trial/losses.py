"""The training loss as a sum of shares, so that micro-batches add up to exactly their batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# What torch's cross entropy leaves out: targets of tokens that do not count.
IGNORED = -100


def weight(targets: Tensor) -> int | Tensor:
    """Return what the mean loss of ``targets`` is divided by: how many of them count.

    Of tokens it is a tensor on their device: to read a number there would wait for all its work.

    Args:
        targets: class indices, int64 [b]; or of tokens, int64 [b, length], some `IGNORED`.
    """
    if targets.ndim == 1:
        return len(targets)
    return (targets != IGNORED).sum()


def share_of_loss(
    logits: Tensor, targets: Tensor, total: int | Tensor, label_smoothing: float
) -> Tensor:
    """Return what these examples add to the mean loss of their batch.

    Args:
        logits: of the examples, [b, classes], or [b, classes, length] for tokens.
        targets: of the examples (see `weight`).
        total: the `weight` of the whole batch, these examples included.
        label_smoothing: share of the target that is spread over all classes.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    whole = isinstance(total, int) and len(targets) == total
    loss = functional.cross_entropy(
        logits,
        targets,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="mean" if whole else "sum",
    )
    return loss if whole else loss / total
