"""Classification with any number of labels an example; binary cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data import Batch, Prepared, Split
from sft_tune.trial.metrics import ALWAYS, SCORES
from sft_tune.trial.tasks.protocol import Outputs


def weight(batch: Batch) -> int:
    """Return the number of examples times that of labels."""
    return batch.targets.numel()


def share_of_loss(outputs: Tensor, batch: Batch, total: int, training: TrainingSpec) -> Tensor:
    """Return the share of the mean binary cross-entropy of logits [b, labels]."""
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    targets = batch.targets.to(outputs.dtype)
    return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="sum") / total


def keep(outputs: Tensor, batch: Batch) -> Outputs:
    """Return the logits [b, labels]."""
    return {"logits": outputs.float()}


def metrics(names: Iterable[str], kept: Outputs, split: Split, data: Prepared) -> dict[str, float]:
    """Return `ALWAYS` and ``names``, of the labels whose probability is above 1/2.

    ``accuracy`` is the share of examples that have exactly the predicted labels; macro means run
    over all labels.
    """
    from sklearn import metrics as library

    logits = kept["logits"]
    true = np.array(split.targets, dtype=np.int64)
    targets = torch.from_numpy(true).to(logits.dtype)
    values = {"loss": float(functional.binary_cross_entropy_with_logits(logits, targets))}
    predicted = (logits > 0).numpy().astype(np.int64)
    for name in dict.fromkeys((*ALWAYS, *names)):
        if name not in values:
            values[name] = SCORES[name](library, true, predicted)
    return values
