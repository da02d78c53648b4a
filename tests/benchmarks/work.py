"""The work that `throughput_images` and `throughput_texts` give to everyone: data and settings."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SHARED = Path(__file__).resolve().parents[3] / "shared"
MEDIAN_WORDS = 45
SPREAD = 0.73
"""Of the log-normal lengths of texts: in tokens a median of 59 and a mean of 77."""


@dataclass(frozen=True)
class Work:
    """N fine-tunings that differ in their learning rate.

    Attributes:
        kind: `images` or `texts`.
        model: weights file of a ResNet-18, or folder of a text encoder.
        learning_rates: one a fine-tuning, all constant.
        epochs: each with an evaluation of the whole validation split at its end.
        batch_size: examples a step, in single precision.
        train: examples.
        validation: examples.
        max_length: tokens that texts are cut to.
    """

    kind: str
    model: str
    learning_rates: Sequence[float]
    epochs: int
    batch_size: int
    train: int
    validation: int
    max_length: int = 256

    def samples(self) -> int:
        """Training examples of all fine-tunings, an example of each epoch counted."""
        return len(self.learning_rates) * self.epochs * self.train

    def write(self, folder: Path) -> None:
        """Write settings and data into ``folder``."""
        (folder / "work.json").write_text(json.dumps(asdict(self)), "utf8")
        data = folder / "data"
        if self.kind == "images":
            _images(data, {"train": self.train, "validation": self.validation})
        else:
            _texts(data, {"train": self.train, "validation": self.validation})


def read(folder: Path) -> Work:
    """Return the work that was written into ``folder``."""
    return Work(**json.loads((folder / "work.json").read_text("utf8")))


def _images(data: Path, sizes: Mapping[str, int]) -> None:
    """Copy the first images of each class of the sample of CIFAR-10."""
    for split, size in sizes.items():
        source = SHARED / "data" / "cifar10" / ("train" if split == "train" else "test")
        classes = sorted(folder for folder in source.iterdir() if folder.is_dir())
        for folder in classes:
            target = data / split / folder.name
            target.mkdir(parents=True)
            for image in sorted(folder.glob("*.jpg"))[: size // len(classes)]:
                shutil.copy(image, target)


def _texts(data: Path, sizes: Mapping[str, int]) -> None:
    """Write texts of log-normal lengths, each of sentences of one label, cut to its length."""
    data.mkdir(parents=True)
    draws = random.Random(0)
    for split, size in sizes.items():
        source = "train.csv" if split == "train" else "test.csv"
        with (SHARED / "data" / "subjectivity" / source).open(encoding="utf8") as file:
            rows = list(csv.DictReader(file))
        labels = sorted({row["label"] for row in rows})
        sentences = {
            label: [row["text"] for row in rows if row["label"] == label] for label in labels
        }
        with (data / f"{split}.jsonl").open("w", encoding="utf8") as file:
            for index in range(size):
                label = labels[index % len(labels)]
                length = max(4, round(MEDIAN_WORDS * draws.lognormvariate(0, SPREAD)))
                words: list[str] = []
                while len(words) < length:
                    words += draws.choice(sentences[label]).split()
                example = {"text": " ".join(words[:length]), "label": label}
                file.write(json.dumps(example) + "\n")
