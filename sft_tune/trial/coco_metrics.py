"""COCO's mean average precision, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_tune.errors import TrialError
from sft_tune.trial.data import BoxSplit


def average_precision(
    split: BoxSplit, detections: NDArray[np.float32], classes: int
) -> dict[str, float]:
    """Return ``map`` (mean over IoU 0.5, 0.55, ..., 0.95) and ``map_50`` (IoU 0.5).

    Both are means over the classes that have boxes (Lin et al. 2014, "Microsoft COCO"), of at
    most 100 detections of each image and class.

    Args:
        split: the images and their boxes.
        detections: of each image: left, top, right, bottom, score and class; a score below 0
            marks a row that does not count, [n, most, 6].
        classes: how many there are.

    Raises:
        TrialError: where pycocotools is not installed.
    """
    dataset, evaluation = _library()
    image, row = np.nonzero(detections[:, :, 4] >= 0)
    if not len(image):
        return {"map": 0.0, "map_50": 0.0}
    found = detections[image, row].astype(np.float64)
    corners = found[:, :4]
    columns = [image[:, None], corners[:, :2], corners[:, 2:] - corners[:, :2], found[:, 4:]]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = dataset()
        truth.dataset = _truth(split, classes)
        truth.createIndex()
        judged = evaluation(truth, truth.loadRes(np.concatenate(columns, axis=1)), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {"map": float(judged.stats[0]), "map_50": float(judged.stats[1])}


def _truth(split: BoxSplit, classes: int) -> dict[str, Any]:
    owner = np.repeat(np.arange(len(split)), split.targets)
    boxes = split.boxes.astype(np.float64)
    annotations = []
    for i, (image, (left, top, right, bottom)) in enumerate(
        zip(owner.tolist(), boxes[: len(owner)].tolist(), strict=True)
    ):
        width, height = right - left, bottom - top
        annotations.append(
            {
                "id": i + 1,  # pycocotools takes 0 for no match
                "image_id": image,
                "category_id": int(split.box_labels[i]),
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": int(split.crowds[i]),
            }
        )
    return {
        "images": [{"id": i} for i in range(len(split))],
        "categories": [{"id": i} for i in range(classes)],
        "annotations": annotations,
    }


def _library() -> Any:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise TrialError(
            "object-detection is measured by pycocotools, which is not installed; "
            "pip install 'sft_tune[detection]'"
        ) from error
    return COCO, COCOeval
