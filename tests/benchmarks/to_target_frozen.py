"""Seconds until a score is reached, as `to_target`, where only the head of a backbone is trained.

The rivals' script is the one that tutorials of transfer learning show: the pretrained backbone
without gradients, run anew in every epoch, images from a DataLoader.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.benchmarks import Table
from tests.benchmarks.recorded import SPACE
from tests.benchmarks.to_target import Task, measure
from tests.benchmarks.work import SHARED

WEIGHTS = SHARED / "models" / "resnet18-cifar5.safetensors"


def run(short: bool) -> Table:
    """Search under 10 seeds for what 40 trials find (``short``: 1 for what 3 short ones find)."""
    return measure(FROZEN, short)


def images_writer(train: int, validation: int) -> Callable[[Path, int], None]:
    """Return what copies so many images of each class of CIFAR-10, others for each seed."""

    def write(folder: Path, seed: int) -> None:
        for source in sorted((SHARED / "data" / "cifar10" / "train").iterdir()):
            images = np.random.default_rng(seed).permutation(sorted(source.glob("*.jpg")))
            parts = {"train": images[:train], "validation": images[train : train + validation]}
            for split, chosen in parts.items():
                target = folder / "data" / split / source.name
                target.mkdir(parents=True)
                for image in chosen:
                    shutil.copy(image, target)

    return write


FROZEN = Task(
    kind="frozen",
    title="head of a frozen ResNet-18 on 400 images of CIFAR-10",
    space=SPACE,
    weights=WEIGHTS,
    study={
        "model": {"name": "torchvision:resnet18", "weights": str(WEIGHTS)},
        "training": {"freeze": "backbone", "augment": "none"},
    },
    write=images_writer(40, 40),
)
