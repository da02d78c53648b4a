"""The training of `to_target` as a plain script has it: one loop over tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from sft_tune.trial.convnet import ConvNet
from tests.benchmarks.rivals.target import train


def _load(folder: Path, split: str) -> TensorDataset:
    arrays = np.load(folder / f"{split}.npz")
    pixels = torch.from_numpy(arrays["pixels"]).float() / 127.5 - 1
    return TensorDataset(pixels[:, None].expand(-1, 3, -1, -1), torch.from_numpy(arrays["labels"]))


def fine_tune(config: dict[str, Any], folder: Path, report: Callable[[float], None]) -> None:
    """Fine-tune the network by ``config``; ``report`` the validation accuracy of each epoch."""
    batches = DataLoader(_load(folder, "train"), config["batch_size"], shuffle=True)
    held_out = DataLoader(_load(folder, "validation"), 256)
    model = ConvNet(5)
    weights: dict[str, Tensor] = load_file(json.loads((folder / "work.json").read_text())["model"])
    floats = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
    model.load_state_dict(floats, strict=False)
    train(config, model, batches, held_out, report)
