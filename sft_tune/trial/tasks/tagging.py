"""Token classification: a tag a word; cross-entropy over tagged tokens, entities by seqeval."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional

from sft_tune.errors import TrialError
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial import losses
from sft_tune.trial.data import Batch, Prepared, Split, TextSplit
from sft_tune.trial.losses import IGNORED
from sft_tune.trial.tasks.protocol import Outputs

ALWAYS = ("loss", "entity_f1", "accuracy")


def weight(batch: Batch) -> int | Tensor:
    """Return the number of tagged tokens."""
    return losses.weight(batch.targets)


def share_of_loss(
    outputs: Tensor, batch: Batch, total: int | Tensor, training: TrainingSpec
) -> Tensor:
    """Return the share of the mean cross-entropy a tagged token, of logits [b, length, tags]."""
    logits = outputs.transpose(1, 2)
    return losses.share_of_loss(logits, batch.targets, total, training.label_smoothing)


def keep(outputs: Tensor, batch: Batch) -> Outputs:
    """Return the likeliest tags [b, length], `IGNORED` at other tokens, and the loss summed [b]."""
    logits, targets = outputs.float().transpose(1, 2), batch.targets
    each = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    tags = logits.argmax(dim=1).masked_fill(targets == IGNORED, IGNORED)
    return {"tags": tags, "loss": each.sum(dim=1)}


def metrics(names: Iterable[str], kept: Outputs, split: Split, data: Prepared) -> dict[str, float]:
    """Return `ALWAYS` and ``names``: of whole entities by seqeval's rules, as conlleval has them.

    ``accuracy`` is of words, O included; ``loss`` is the mean over them.

    Raises:
        TrialError: where seqeval is not installed.
    """
    if not isinstance(split, TextSplit) or split.tags is None:
        raise TypeError("only words that have tags can be measured")
    flat = np.asarray(split.tags)
    rows = [flat[a:b] for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)]
    true = [row[row != IGNORED] for row in rows]
    found = [row[row != IGNORED] for row in kept["tags"].numpy()]
    library = _seqeval()
    named = [[[data.labels[tag] for tag in row] for row in side] for side in (true, found)]
    words = sum(len(row) for row in true)
    right = sum(int((a == b).sum()) for a, b in zip(true, found, strict=True))
    values = {"loss": float(kept["loss"].double().sum()) / words, "accuracy": right / words}
    for name in dict.fromkeys((*ALWAYS, *names)):
        if name not in values:
            score = getattr(library, f"{name.removeprefix('entity_')}_score")
            values[name] = float(score(*named, zero_division=0))
    return values


def _seqeval() -> Any:
    try:
        from seqeval import metrics as library
    except ImportError as error:
        raise TrialError(
            "token-classification is measured by seqeval, which is not installed; "
            "pip install 'sft_tune[text]'"
        ) from error
    return library
