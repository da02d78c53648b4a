"""Frozen backbones: heads trained on features kept once, against the backbone run every epoch.

The same trials, through the product, on one worker: as by default (`resources.feature_cache`, and
`resources.stack: auto`: several as one), one after another, and without kept features. Learning
rate, epochs and batch size are searched at random, so each way trains the same configurations, as
many epochs in all: where all trials are measured, that is checked.
The time of each study, and what is judged, is its wall seconds, start of the processes and the
making of the features included; the seconds inside trials are reported beside it. A study of one
trial goes before, so that no measured one is the first to read the libraries from the disk. The
long way is measured on as many trials as SFT_TUNE_BENCHMARK_LONG says, where that is set, and
scaled by epochs: the table says so.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from sft_tune.run.events import Event, TrialEnded
from sft_tune.run.slots import warm_up
from sft_tune.run.study import start_study
from sft_tune.spec.load import load_study
from sft_tune.store.database import Database
from tests.benchmarks import Table

SHARED = Path(__file__).parents[3] / "shared"
TRIALS = 64
EPOCHS = (5, 20)
BATCH_SIZES = (16, 32, 64)
EXAMPLES = (("image", 1000), ("image", 4000), ("text", 1000))
"""Of training, a quarter as many of validation: of the images a part, and all that there are."""
TARGET = 100.0
"""How many times faster the trials are to be."""


LONG = "SFT_TUNE_BENCHMARK_LONG"
"""Environment variable: how many trials the long way is measured on, where not on all."""


class Measured(NamedTuple):
    """A study: its wall seconds, those inside its trials, and the epochs of all of them."""

    wall: float
    inside: float
    epochs: int

    def scaled(self, epochs: int) -> Measured:
        """Return what trials of so many ``epochs`` in all would take."""
        inside = self.inside * epochs / self.epochs
        return Measured(self.wall - self.inside + inside, inside, epochs)


def run(short: bool) -> Table:
    """Measure 64 trials of 5 to 20 epochs for each model (``short``: 2 of 1 to 2 epochs)."""
    trials, epochs = (2, (1, 2)) if short else (TRIALS, EPOCHS)
    sizes = (("image", 64), ("text", 64)) if short else EXAMPLES
    measured_on = min(trials, int(os.environ.get(LONG, trials)))
    rows, ratios = [], []
    for kind, examples in sizes:
        measure(kind, 1, (1, 1), 64, cached=True)
        quick = measure(kind, trials, epochs, examples, cached=True, stack="auto")
        alone = measure(kind, trials, epochs, examples, cached=True, stack="off")
        if alone.epochs != quick.epochs:
            raise RuntimeError(f"{quick.epochs} epochs stacked, {alone.epochs} one after another")
        part = measure(kind, measured_on, epochs, examples, cached=False, stack="off")
        long = part.scaled(quick.epochs)
        ratios.append(long.wall / quick.wall)
        rows.append(
            (
                kind,
                str(examples),
                str(trials),
                f"{long.wall:.1f} s",
                f"{alone.wall:.1f} s",
                f"{quick.wall:.1f} s",
                f"{ratios[-1]:.1f}",
                "-" if short else f"{TARGET:.0f}: {'met' if ratios[-1] >= TARGET else 'missed'}",
                f"{long.inside:.1f} s",
                f"{alone.inside:.1f} s",
                f"{quick.inside:.1f} s",
                f"{long.inside / quick.inside:.1f}",
            )
        )
    notes = [f"load average at the end {os.getloadavg()[0]:.1f}"]
    if measured_on < trials:
        notes.append(f"the long way was measured on {measured_on} trials and scaled by epochs")
    return Table(
        title=f"frozen ResNet-18 (32x32) and MiniLM-L6, {epochs[0]} to {epochs[1]} epochs, "
        "1 worker of 1 thread, no pruning",
        columns=(
            *("model", "examples", "n", "wall, long way", "wall, cached", "wall, stacked"),
            *("ratio", "target"),
            *("in trials, long way", "in trials, cached", "in trials, stacked", "ratio"),
        ),
        rows=rows,
        notes=notes,
        met=None if short else min(ratios) >= TARGET,
    )


def measure(
    kind: str,
    trials: int,
    epochs: tuple[int, int],
    examples: int,
    *,
    cached: bool,
    stack: str = "off",
) -> Measured:
    """Return the seconds of a study from an empty cache.

    Raises:
        RuntimeError: when a trial did not complete: then there is nothing to compare.
    """
    ended: list[TrialEnded] = []

    def notify(happened: Event) -> None:
        if isinstance(happened, TrialEnded):
            ended.append(happened)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "heads.json"
        path.write_text(
            json.dumps(_content(kind, trials, epochs, examples, cached=cached, stack=stack))
        )
        with patch.dict(os.environ, {"SFT_TUNE_CACHE": f"{folder}/cache"}):
            begun = time.monotonic()
            loaded = load_study(path)
            warm_up(loaded.spec)  # as `sft-tune start` and `tune` do
            db = Database.open(f"sqlite:///{folder}/heads.db", create=True)
            try:
                start_study(loaded, db, notify=notify)
                wall = time.monotonic() - begun
            finally:
                db.dispose()
    completed = [trial for trial in ended if trial.reason == "completed"]
    if len(completed) != trials:
        raise RuntimeError(f"{len(completed)} of {trials} trials completed")
    return Measured(
        wall,
        sum(trial.seconds for trial in completed),
        sum(int(trial.params["epochs"]) for trial in completed),
    )


def _content(
    kind: str,
    trials: int,
    epochs: tuple[int, int],
    examples: int,
    *,
    cached: bool,
    stack: str = "off",
) -> dict[str, Any]:
    limits = {"train_limit": examples, "validation_limit": examples // 4}
    if kind == "image":
        data = {"source": str(SHARED / "data" / "cifar10"), **limits}
        weights = str(SHARED / "models" / "resnet18-cifar5.safetensors")
        model = {"name": "torchvision:resnet18", "weights": weights}
    else:
        data = {"source": str(SHARED / "data" / "subjectivity"), "max_length": 64, **limits}
        model = {"name": f"transformers:{SHARED / 'models' / 'minilm-l6'}"}
    return {
        "name": "heads",
        "task": f"{kind}-classification",
        "data": data,
        "model": model,
        "training": {"freeze": "backbone", "augment": "none"},
        "space": {
            "epochs": {"low": epochs[0], "high": epochs[1]},
            "batch_size": BATCH_SIZES,
            "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        },
        "sampler": {"name": "random"},
        "pruner": {"name": "none"},
        "budget": {"trials": trials},
        "resources": {
            **{"devices": "cpu", "trials_per_device": 1, "threads_per_trial": 1},
            **{"feature_cache": cached, "stack": stack},
        },
    }
