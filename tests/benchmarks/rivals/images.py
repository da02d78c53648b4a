"""The training of `to_target_images` as tutorials show it: the whole ResNet-18, one plain loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import Compose, Normalize, ToTensor

from tests.benchmarks.rivals.target import factor_of


def fine_tune(config: dict[str, Any], folder: Path, report: Callable[[float], None]) -> None:
    """Fine-tune by ``config``; ``report`` the validation accuracy of each epoch."""
    transform = Compose([ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])
    train_set, held_out_set = (
        ImageFolder(folder / "data" / split, transform) for split in ("train", "validation")
    )
    train = DataLoader(train_set, config["batch_size"], shuffle=True)
    held_out = DataLoader(held_out_set, 256)
    model = resnet18(num_classes=10)
    weights = load_file(json.loads((folder / "work.json").read_text())["model"])
    backbone = {k: v.float() for k, v in weights.items() if not k.startswith("fc.")}
    model.load_state_dict(backbone, strict=False)
    loss_of = nn.CrossEntropyLoss(label_smoothing=config["label_smoothing"])
    optimizer = torch.optim.AdamW(
        model.parameters(), config["learning_rate"], weight_decay=config["weight_decay"]
    )
    steps = config["epochs"] * len(train)
    factor = factor_of(config["schedule"], config["epochs"], steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(config["epochs"]):
        model.train()
        for images, labels in train:
            optimizer.zero_grad()
            loss_of(model(images), labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        right = 0
        with torch.no_grad():
            for images, labels in held_out:
                right += int((model(images).argmax(1) == labels).sum())
        report(right / len(held_out_set))
