"""The data side of a trial: sources, splits, prepared arrays, batches."""

from sft_tune.trial.data.arrays import (
    AudioSplit,
    BoxSplit,
    FeatureSplit,
    ImageSplit,
    Prepared,
    Split,
    TextSplit,
)
from sft_tune.trial.data.batches import (
    Batch,
    bucketed_order,
    epoch_order,
    evaluation_batches,
    gather,
)
from sft_tune.trial.data.prepare import prepare

__all__ = [
    "AudioSplit",
    "Batch",
    "BoxSplit",
    "FeatureSplit",
    "ImageSplit",
    "Prepared",
    "Split",
    "TextSplit",
    "bucketed_order",
    "epoch_order",
    "evaluation_batches",
    "gather",
    "prepare",
]
