"""A training function of one's own, for python_task.yaml: everything it is given, it uses."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier


def train(
    config: Mapping[str, Any],
    folder: Path,
    seed: int,
    report: Callable[[float, Mapping[str, float]], bool],
) -> None:
    """Train a perceptron; go on where a killed attempt left it."""
    images, digits = load_digits(return_X_y=True)
    split = train_test_split(images / 16, digits, test_size=0.3, stratify=digits, random_state=0)
    train_images, validation_images, train_digits, validation_digits = split
    model = MLPClassifier(
        (config["hidden"],),
        activation=config["activation"],
        learning_rate_init=config["learning_rate"],
        beta_1=config.get("momentum", 0.9),
        random_state=seed,
    )
    begin, checkpoint = 0, folder / "checkpoint.pickle"
    if checkpoint.exists():  # our own file: nobody else writes here
        begin, model = pickle.loads(checkpoint.read_bytes())
    for epoch in range(begin, config["epochs"]):
        model.partial_fit(train_images, train_digits, classes=range(10))
        metrics = {
            "accuracy": model.score(validation_images, validation_digits),
            "loss": log_loss(validation_digits, model.predict_proba(validation_images)),
            "train_loss": model.loss_,
        }
        temporary = folder / "checkpoint.tmp"
        temporary.write_bytes(pickle.dumps((epoch + 1, model)))
        temporary.replace(checkpoint)
        if report((epoch + 1) / config["epochs"], metrics):
            return  # pruned, or stopped
