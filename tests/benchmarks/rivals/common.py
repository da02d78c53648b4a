"""What the scripts share: models, data sets, one fine-tuning by a loop as tutorials show it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, ToTensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.benchmarks.rivals.target import accuracy
from tests.benchmarks.work import Work, read


def main(name: str, search: Callable[[Work, Path], Sequence[float]]) -> None:
    """Do the work of the folder that the command line names, and write its accuracies there."""
    folder = Path(sys.argv[1]).resolve()
    accuracies = search(read(folder), folder)
    (folder / f"{name}.json").write_text(json.dumps(list(accuracies)), "utf8")


def image_model(work: Work, classes: int = 10) -> nn.Module:
    """Return a ResNet-18 with the pretrained weights and a new head."""
    model = resnet18(num_classes=classes)
    weights = load_file(work.model)
    backbone = {k: v.float() for k, v in weights.items() if not k.startswith("fc.")}
    model.load_state_dict(backbone, strict=False)
    return model


def text_model(work: Work) -> Any:
    """Return the text encoder with a new head, in single precision."""
    return AutoModelForSequenceClassification.from_pretrained(
        work.model, num_labels=2, dtype=torch.float32
    )


def image_sets(data: Path) -> tuple[ImageFolder, ImageFolder]:
    """Return train (mirrored at random) and validation, decoded and transformed at each access."""
    plain = [ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)]
    return (
        ImageFolder(data / "train", Compose([RandomHorizontalFlip(), *plain])),
        ImageFolder(data / "validation", Compose(plain)),
    )


def read_texts(path: Path) -> tuple[list[str], list[int]]:
    """Return the texts of a file and their labels as numbers."""
    rows = [json.loads(line) for line in path.read_text("utf8").splitlines()]
    labels = sorted({row["label"] for row in rows})
    return [row["text"] for row in rows], [labels.index(row["label"]) for row in rows]


class Texts(Dataset[dict[str, Any]]):
    """Tokenised texts: all padded to the longest admitted (``padded``), or as long as they are."""

    def __init__(self, path: Path, work: Work, padded: bool) -> None:
        texts, self.labels = read_texts(path)
        self.tokenizer = AutoTokenizer.from_pretrained(work.model)
        padding = "max_length" if padded else False
        self.encoded = self.tokenizer(
            texts, truncation=True, max_length=work.max_length, padding=padding
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {name: values[index] for name, values in self.encoded.items()}
        return {**item, "labels": self.labels[index]}


def train_images(
    work: Work, data: Path, learning_rate: float, workers: int, report: Callable[[float], None]
) -> None:
    """Fine-tune the ResNet-18, its images from DataLoaders; ``report`` each epoch's accuracy."""
    train, validation = image_sets(data)
    batches = DataLoader(train, work.batch_size, shuffle=True, num_workers=workers)
    held_out = DataLoader(validation, work.batch_size, num_workers=workers)
    model, loss_of = image_model(work), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=0.9)
    for _ in range(work.epochs):
        model.train()
        for images, labels in batches:
            optimizer.zero_grad()
            loss_of(model(images), labels).backward()
            optimizer.step()
        report(accuracy(model, held_out))


def train_texts(
    work: Work, data: Path, learning_rate: float, padded: bool, report: Callable[[float], None]
) -> None:
    """Fine-tune the encoder; ``padded`` to the maximum, else each batch to its longest text."""
    train = Texts(data / "train.jsonl", work, padded)
    validation = Texts(data / "validation.jsonl", work, padded)

    def collate(items: list[dict[str, Any]]) -> Any:
        return train.tokenizer.pad(items, return_tensors="pt")

    batches = DataLoader(train, work.batch_size, shuffle=True, collate_fn=collate)
    held_out = DataLoader(validation, work.batch_size, collate_fn=collate)
    model = text_model(work)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for _ in range(work.epochs):
        model.train()
        for batch in batches:
            optimizer.zero_grad()
            model(**batch).loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        right = 0
        with torch.no_grad():
            for batch in held_out:
                right += int((model(**batch).logits.argmax(1) == batch["labels"]).sum())
        report(right / len(validation))
