"""Frozen backbones: heads trained on features kept once, against the backbone run every epoch.

The same trials, through the product, on one worker: as by default (`resources.feature_cache`, and
`resources.stack: auto`: several as one), one after another, and without kept features.
The time of each study, and what is judged, is its wall seconds, start of the processes and the making
of the features included; the seconds inside trials are reported beside it. The long way's are measured
on as many trials as SFT_TUNE_BENCHMARK_LONG says, where that is set, and scaled by epochs: the table
says so.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sft_tune.run.events import Event, TrialEnded
from sft_tune.run.study import start_study
from sft_tune.spec.load import load_study
from sft_tune.store.database import Database
from tests.benchmarks import Table

SHARED = Path(__file__).parents[3] / "shared"
TRIALS = 64
EPOCHS = (5, 20)
TARGET = 100.0
"""How many times faster the trials are to be."""


def run(short: bool) -> Table:
    """Measure 64 trials of 5 to 20 epochs for each model (``short``: 2 of 1 to 2 epochs)."""
    trials, epochs, examples = (2, (1, 2), 64) if short else (TRIALS, EPOCHS, 1000)
    rows, ratios = [], []
    for kind in ("image", "text"):
        quick = measure(kind, trials, epochs, examples, cached=True, stack="auto")
        alone = measure(kind, trials, epochs, examples, cached=True, stack="off")
        long = measure(kind, trials, epochs, examples, cached=False, stack="off")
        ratios.append(long[1] / quick[1])
        rows.append(
            (
                kind,
                str(trials),
                f"{long[0]:.1f} s",
                f"{alone[0]:.1f} s",
                f"{quick[0]:.1f} s",
                f"{long[0] / quick[0]:.1f}",
                f"{long[1]:.1f} s",
                f"{alone[1]:.1f} s",
                f"{quick[1]:.1f} s",
                f"{ratios[-1]:.1f}",
                f"{TARGET:.0f}",
            )
        )
    met = min(ratios) >= TARGET
    return Table(
        title=f"frozen ResNet-18 (32x32) and MiniLM-L6, {examples} examples, "
        f"{epochs[0]} to {epochs[1]} epochs, 1 worker of 1 thread, no pruning",
        columns=(
            *("model", "n", "wall, long way", "wall, cached", "wall, stacked", "ratio"),
            *("in trials, long way", "in trials, cached", "in trials, stacked", "ratio", "target"),
        ),
        rows=rows,
        notes=[] if short else ["every target met" if met else "A TARGET WAS MISSED"],
        met=None if short else met,
    )


def measure(
    kind: str,
    trials: int,
    epochs: tuple[int, int],
    examples: int,
    *,
    cached: bool,
    stack: str = "off",
) -> tuple[float, float]:
    """Return the wall seconds of a study from an empty cache, and those inside its trials.

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
            db = Database.open(f"sqlite:///{folder}/heads.db", create=True)
            try:
                begun = time.monotonic()
                start_study(load_study(path), db, notify=notify)
                wall = time.monotonic() - begun
            finally:
                db.dispose()
    completed = [trial for trial in ended if trial.reason == "completed"]
    if len(completed) != trials:
        raise RuntimeError(f"{len(completed)} of {trials} trials completed")
    return wall, sum(trial.seconds for trial in completed)


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
        "training": {"freeze": "backbone", "augment": "none", "batch_size": 32},
        "space": {
            "epochs": {"low": epochs[0], "high": epochs[1]},
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
