"""Object detection: boxes with classes; the detector's own losses, COCO's average precision."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sft_tune.errors import TrialError
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.coco_metrics import average_precision
from sft_tune.trial.data import Batch, BoxSplit, Prepared, Split
from sft_tune.trial.tasks.protocol import Outputs

ALWAYS = ("loss", "map", "map_50")


def weight(batch: Batch) -> int:
    """Return the number of images."""
    return len(batch)


def share_of_loss(outputs: Outputs, batch: Batch, total: int, training: TrainingSpec) -> Tensor:
    """Return the sum of the detector's losses, by the share of the images.

    Detectors divide by what they match in the images that they get, so that the losses of
    micro-batches add up to their batch's only about (exactly where those matches are as many).
    """
    return torch.stack(list(outputs.values())).sum() * (len(batch) / total)


def keep(outputs: Outputs, batch: Batch) -> Outputs:
    """Return the losses of each image, by their names, and the detections."""
    return {name: tensor.float() for name, tensor in outputs.items()}


def metrics(names: Iterable[str], kept: Outputs, split: Split, data: Prepared) -> dict[str, float]:
    """Return `ALWAYS`, ``names``, and each of the detector's losses.

    ``loss`` is their sum, the mean over images that are each taken alone; ``map`` and ``map_50``
    are COCO's.

    Raises:
        TrialError: where pycocotools is not installed.
    """
    if not isinstance(split, BoxSplit):
        raise TrialError("object-detection needs images with boxes")
    own = {k: float(v.double().mean()) for k, v in kept.items() if k != "detections"}
    found = average_precision(split, kept["detections"].numpy(), len(data.labels))
    return {"loss": sum(own.values()), **found, **own}
