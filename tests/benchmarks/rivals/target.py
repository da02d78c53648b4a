"""What the searches of `to_target` share: where the work is, its training, its schedules."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Training = Callable[[dict[str, Any], Path, Callable[[float], None]], None]
"""Fine-tunes by a configuration from a folder, and reports the accuracy of each epoch."""


def work() -> tuple[Path, dict[str, Any]]:
    """Return the folder that the command line names, and what is to be done there."""
    folder = Path(sys.argv[1]).resolve()
    return folder, json.loads((folder / "work.json").read_text("utf8"))


def training_of(given: dict[str, Any]) -> Training:
    """Return the training of the work's kind."""
    training: Training = importlib.import_module(
        f"tests.benchmarks.rivals.{given['kind']}"
    ).fine_tune
    return training


def factor_of(name: str, epochs: int, steps: int) -> Callable[[int], float]:
    """Return the learning rate's factor by step: a warm-up over a tenth, then the schedule."""
    warmup = max(1, round(0.1 * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        return {
            "constant": 1.0,
            "linear": 1 - done,
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "exponential": 0.9 ** (done * epochs),
        }[name]

    return factor
