"""What the searches of `to_target` share: where the work is, its training, its schedules."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

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


def train(
    config: dict[str, Any],
    model: nn.Module,
    batches: DataLoader[Any],
    held_out: DataLoader[Any],
    report: Callable[[float], None],
    *,
    frozen: bool = False,
) -> None:
    """Train what of ``model`` is to be trained, by the plain loop of the tutorials.

    Args:
        config: a point of the space.
        model: as it begins.
        batches: to train on.
        held_out: for the accuracy that is told after each epoch.
        report: is told it.
        frozen: whether the model stays in evaluation mode, as a frozen backbone does.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    loss_of = nn.CrossEntropyLoss(label_smoothing=config["label_smoothing"])
    optimizer = torch.optim.AdamW(
        trained, config["learning_rate"], weight_decay=config["weight_decay"]
    )
    steps = config["epochs"] * len(batches)
    factor = factor_of(config["schedule"], config["epochs"], steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(config["epochs"]):
        model.train(not frozen)
        for inputs, labels in batches:
            optimizer.zero_grad()
            loss_of(model(inputs), labels).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
        report(accuracy(model, held_out))


def accuracy(model: nn.Module, held_out: DataLoader[Any]) -> float:
    """Return the share of ``held_out`` that ``model``, set to evaluation, has right."""
    model.eval()
    right = 0
    with torch.no_grad():
        for inputs, labels in held_out:
            right += int((model(inputs).argmax(1) == labels).sum())
    return right / len(held_out.dataset)  # type: ignore[arg-type]
