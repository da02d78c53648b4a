"""Classification: one class an example; cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial import losses
from sft_tune.trial.data import Batch, Prepared, Split
from sft_tune.trial.metrics import compute
from sft_tune.trial.tasks.protocol import Outputs


def weight(batch: Batch) -> int | Tensor:
    """Return the number of examples."""
    return losses.weight(batch.targets)


def share_of_loss(
    outputs: Tensor, batch: Batch, total: int | Tensor, training: TrainingSpec
) -> Tensor:
    """Return the share of the cross-entropy of logits [b, classes]."""
    return losses.share_of_loss(outputs, batch.targets, total, training.label_smoothing)


def keep(outputs: Tensor, batch: Batch) -> Outputs:
    """Return the logits [b, classes]."""
    return {"logits": outputs.float()}


def metrics(names: Iterable[str], kept: Outputs, split: Split, data: Prepared) -> dict[str, float]:
    """Return `ALWAYS` and ``names`` (see `sft_tune.trial.metrics`)."""
    targets = torch.from_numpy(np.array(split.targets, dtype=np.int64))
    return compute(names, kept["logits"], targets)
