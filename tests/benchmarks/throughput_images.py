"""Trials per hour on images: ResNet-18 of ../shared fine-tuned on a sample of CIFAR-10.

12 fine-tunings of 2 epochs of 400 images are sized for 4 minutes on 2 CPU cores, all rivals
together; SFT_TUNE_BENCHMARK_TRIALS=48 measures more of them, with a smaller share for the start.
See `tests.benchmarks.side_by_side` for what is held equal.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.benchmarks import Table
from tests.benchmarks.rivals.common import image_model, image_sets
from tests.benchmarks.side_by_side import compare, trials
from tests.benchmarks.work import SHARED, Work

TARGETS = {"optuna_script": 1.1, "trainer_search": 2.0}
TRAINING = {"optimizer": "sgd", "momentum": 0.9, "augment": "flip", "clip_norm": None}


def run(short: bool) -> Table:
    """Measure 12 fine-tunings (``short``: 2 tiny ones)."""
    count = 2 if short else trials(12)
    work = Work(
        kind="images",
        model=str(SHARED / "models" / "resnet18-cifar5.safetensors"),
        learning_rates=[float(rate) for rate in np.geomspace(2e-3, 2e-2, count)],
        epochs=1 if short else 2,
        batch_size=20 if short else 50,
        train=40 if short else 400,
        validation=20 if short else 200,
    )

    def limit(folder: Path) -> float:
        return max(samples_per_second(work, folder, layout) for layout in LAYOUTS)

    return compare(work, TRAINING, limit, {} if short else TARGETS)


LAYOUTS = (torch.contiguous_format, torch.channels_last)


def samples_per_second(work: Work, folder: Path, layout: torch.memory_format) -> float:
    """Train from one tensor of bytes, mirrored in batches, with fused SGD, for some seconds."""
    train, _ = image_sets(folder / "data")
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in raw(train)]))
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(train.targets)
    model = image_model(work).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step(rows: Tensor) -> None:
        batch = pixels[rows].float().div_(127.5).sub_(1)
        mirrored = torch.rand(len(rows)) < 0.5
        batch[mirrored] = batch[mirrored].flip(3)
        batch = batch.contiguous(memory_format=layout)
        nn.functional.cross_entropy(model(batch), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(torch.arange(work.batch_size))
    done, begun = 0, time.monotonic()
    for _ in range(work.epochs * 3):
        for rows in torch.randperm(len(labels)).split(work.batch_size):
            step(rows)
            done += len(rows)
    return done / (time.monotonic() - begun)


def raw(images: object) -> list[tuple[object, int]]:
    """Return the images of an image folder as they are, without its transform."""
    images.transform = None  # type: ignore[attr-defined]
    return list(images)  # type: ignore[call-overload]
