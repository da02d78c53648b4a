"""Seconds until a score is reached, as `to_target`, where a whole ResNet-18 is fine-tuned.

The rivals' script is the plain loop of the tutorials: images from a DataLoader, AdamW as PyTorch
makes it, an evaluation after every epoch.
"""

from __future__ import annotations

from tests.benchmarks import Table
from tests.benchmarks.recorded import SPACE
from tests.benchmarks.to_target import Task, measure
from tests.benchmarks.to_target_frozen import WEIGHTS, images_writer


def run(short: bool) -> Table:
    """Search under 10 seeds for what 40 trials find (``short``: 1 for what 3 short ones find)."""
    return measure(IMAGES, short)


IMAGES = Task(
    kind="images",
    title="a whole ResNet-18 on 200 images of CIFAR-10",
    space=SPACE,
    weights=WEIGHTS,
    study={
        "model": {"name": "torchvision:resnet18", "weights": str(WEIGHTS)},
        "training": {"augment": "none"},
    },
    write=images_writer(20, 20),
)
