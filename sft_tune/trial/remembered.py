"""The micro-batch that worked, remembered for the next trial of the same model, data and device.

One small JSON file for each, under `micro_batches` of the cache folder; delete it to try whole
batches again. Whatever is wrong with it, a trial finds its micro-batch again by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import BoxSplit, ImageSplit, Prepared
from sft_tune.trial.data.cache import key_of
from sft_tune.trial.device import describe_device
from sft_tune.trial.trainee import Trainee

FOLDER = "micro_batches"
LIMIT = "micro_batch"
STEP = 2
"""Of which step remembered seconds are: since 2, texts on a CPU go in parts of like length."""


class Remembered:
    """The file of one model, data, batch size, precision and device.

    Writers do not wait for each other: each replaces the whole file, and any that worked is good.
    """

    def __init__(self, cache: Path, trainee: Trainee) -> None:
        """Name the file under the cache folder ``cache``; nothing is read or created."""
        self._facts = facts_of(trainee.config, trainee.data, trainee.device, trainee.dtype)
        training = trainee.config.training
        self._most = training.batch_size if training.batch_tokens is None else training.batch_tokens
        self.path = cache / FOLDER / f"{key_of(self._facts)}.json"
        self._known: int | None = None

    def recall(self) -> int | None:
        """Return the micro-batch that worked; None when none was needed, or none is known."""
        try:
            record = json.loads(self.path.read_bytes())
        except (OSError, ValueError):
            return None
        limit = record.get(LIMIT) if isinstance(record, dict) else None
        if type(limit) is not int or not 1 <= limit < self._most:
            return None
        self._known = limit
        return limit

    def keep(self, limit: int | None) -> None:
        """Write down that ``limit`` has worked, where that is news. A full disk is no matter."""
        if limit is None or limit == self._known:
            return
        self._known = limit
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_json(self.path, {LIMIT: limit, **self._facts})


def facts_of(
    config: TrialConfig, data: Prepared, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Return what decides how much memory an example takes, and how much there is.

    ``dtype`` is that of the training's passes.
    """
    train = data.train
    if isinstance(train, BoxSplit):
        example: Any = [*train.sizes.max(axis=0).tolist(), config.data.image_size]
    elif isinstance(train, ImageSplit):
        example = train.pixels.shape[1:]
    else:
        example = int(train.lengths.max())
    return {
        "model": config.model.name,
        "weights": config.model.weights,
        "labels": len(data.labels),
        "freeze": config.training.freeze,
        "lora_rank": config.model.lora_rank,
        "optimizer": config.training.optimizer,
        "example": example,
        "batch_size": config.training.batch_size,
        **({"batch_tokens": tokens} if (tokens := config.training.batch_tokens) else {}),
        "precision": "tf32" if config.training.precision == "tf32" else str(dtype),
        "device": describe_device(device),
        "checkpointing": config.training.gradient_checkpointing,
    }


def replace_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write ``record`` to ``path`` under another name, and rename it: it is whole or not there."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
