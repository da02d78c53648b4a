"""Causal language modelling: the next token, at the tokens that are to be learnt; cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial import losses
from sft_tune.trial.data import Batch, Prepared, Split
from sft_tune.trial.losses import IGNORED
from sft_tune.trial.tasks.protocol import Outputs

ALWAYS = ("loss", "perplexity", "token_accuracy")
# Beyond this perplexity has no number.
_HIGHEST = 700.0


def weight(batch: Batch) -> Tensor:
    """Return the number of tokens to be learnt; 1 where there is none, whose loss is 0."""
    return torch.as_tensor(losses.weight(batch.targets)).clamp_min(1)


def share_of_loss(
    outputs: Tensor, batch: Batch, total: int | Tensor, training: TrainingSpec
) -> Tensor:
    """Return the share of the mean cross-entropy a token, of logits [b, length, vocabulary]."""
    # Only these are copied to single precision: a vocabulary is large. To find them waits for the
    # device, once.
    learnt = (batch.targets != IGNORED).nonzero(as_tuple=True)
    logits, targets = outputs[learnt], batch.targets[learnt]
    return losses.share_of_loss(logits, targets, total, training.label_smoothing)


def keep(outputs: Tensor, batch: Batch) -> Outputs:
    """Return of each example the loss summed, how many tokens were likeliest, and of how many."""
    counted = batch.targets != IGNORED
    learnt = counted.nonzero(as_tuple=True)
    logits, targets = outputs[learnt].float(), batch.targets[learnt]
    each = functional.cross_entropy(logits, targets, reduction="none")
    right = (logits.argmax(dim=1) == targets).to(each.dtype)
    zeros = each.new_zeros(len(counted))
    return {
        "loss": zeros.index_add(0, learnt[0], each),
        "right": zeros.index_add(0, learnt[0], right),
        "tokens": counted.sum(dim=1),
    }


def metrics(names: Iterable[str], kept: Outputs, split: Split, data: Prepared) -> dict[str, float]:
    """Return `ALWAYS` and ``names``: means over all tokens to be learnt of the whole split.

    ``perplexity`` is the exponential of the loss, ``token_accuracy`` the share of tokens that
    were the likeliest after the true ones before them.
    """
    tokens = float(kept["tokens"].sum())
    loss = float(kept["loss"].double().sum()) / tokens
    values = {
        "loss": loss,
        "perplexity": math.exp(min(loss, _HIGHEST)) if math.isfinite(loss) else loss,
        "token_accuracy": float(kept["right"].double().sum()) / tokens,
    }
    return {name: values[name] for name in dict.fromkeys((*ALWAYS, *names))}
