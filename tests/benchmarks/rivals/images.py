"""The training of `to_target_images` as tutorials show it, and with it that of a frozen one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18
from torchvision.transforms import Compose, Normalize, ToTensor

from tests.benchmarks.rivals.target import train


def fine_tune(
    config: dict[str, Any],
    folder: Path,
    report: Callable[[float], None],
    *,
    frozen: bool = False,
) -> None:
    """Fine-tune a ResNet-18 by ``config``, or the head of a ``frozen`` one; see `train`."""
    transform = Compose([ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])
    train_set, held_out_set = (
        ImageFolder(folder / "data" / split, transform) for split in ("train", "validation")
    )
    model = resnet18(num_classes=10)
    weights = load_file(json.loads((folder / "work.json").read_text())["model"])
    backbone = {k: v.float() for k, v in weights.items() if not k.startswith("fc.")}
    model.load_state_dict(backbone, strict=False)
    if frozen:
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
    batches = DataLoader(train_set, config["batch_size"], shuffle=True)
    train(config, model, batches, DataLoader(held_out_set, 256), report, frozen=frozen)
