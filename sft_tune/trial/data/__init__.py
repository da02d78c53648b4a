"""The data side of a trial: sources, splits, prepared arrays, batches."""

from sft_tune.trial.data.arrays import ImageSplit, Prepared, Split, TextSplit
from sft_tune.trial.data.batches import Batch, epoch_order, evaluation_batches, gather
from sft_tune.trial.data.prepare import prepare

__all__ = [
    "Batch",
    "ImageSplit",
    "Prepared",
    "Split",
    "TextSplit",
    "epoch_order",
    "evaluation_batches",
    "gather",
    "prepare",
]
