"""Trials per hour where trials are short: a ResNet-18 sees 100 images once, about half a second.

What a tool does around a trial weighs more than the training here. The same as
`throughput_images` in all else.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.benchmarks import Table
from tests.benchmarks.side_by_side import compare, trials
from tests.benchmarks.throughput_images import LAYOUTS, TRAINING, samples_per_second
from tests.benchmarks.work import SHARED, Work

TARGETS = {"trainer_search": 2.0, "ray_tune": 2.0}


def run(short: bool) -> Table:
    """Measure 24 fine-tunings (``short``: 2 tiny ones)."""
    count = 2 if short else trials(24)
    work = Work(
        kind="images",
        model=str(SHARED / "models" / "resnet18-cifar5.safetensors"),
        learning_rates=[float(rate) for rate in np.geomspace(2e-3, 2e-2, count)],
        epochs=1,
        batch_size=20,
        train=40 if short else 100,
        validation=20 if short else 100,
    )

    def limit(folder: Path) -> float:
        return max(samples_per_second(work, folder, layout) for layout in LAYOUTS)

    return compare(work, TRAINING, limit, {} if short else TARGETS)
