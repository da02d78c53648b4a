"""Make quickstart_backbone.safetensors: the small network of the quickstart, pretrained on 0 to 4.

Run from the repository: ``python studies/quickstart_pretrain.py``. It takes under a minute on two
CPU cores, and gives the same bits again on the same machine. The head is left out: the
quickstart's task has other classes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sft_tune.run.single import train_one
from sft_tune.spec.config import assemble
from sft_tune.spec.load import parse_study

HERE = Path(__file__).resolve().parent
PRETRAINING = {
    "name": "quickstart-backbone",
    "task": "image-classification",
    "data": {
        "source": "sklearn:digits",
        "classes": [0, 1, 2, 3, 4],
        "image_size": 16,
        "validation_fraction": 0.1,
    },
    "model": {"name": "builtin:convnet", "weights": "none"},
    "training": {
        "epochs": 30,
        "batch_size": 32,
        "learning_rate": 0.003,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "schedule": "cosine",
    },
    "budget": {"trials": 1},
}


def main() -> None:
    """Train, print the rungs, and write the weights in half precision."""
    spec = parse_study(PRETRAINING, root=HERE)
    with tempfile.TemporaryDirectory() as folder:
        outcome = train_one(
            assemble(spec, {}, 0),
            Path(folder),
            spec.resources,
            lambda rung: print(f"{rung['progress']:3d} %  {rung['metrics']['accuracy']:.3f}"),
        )
        weights = load_file(outcome["checkpoint"])
    backbone = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
        if not name.startswith("head.")
    }
    target = HERE / "quickstart_backbone.safetensors"
    save_file(backbone, target, metadata={"made by": Path(__file__).name})
    count = sum(tensor.numel() for tensor in backbone.values())
    print(f"{target}: {count:,} numbers, {target.stat().st_size / 1024:.0f} KB, "
          f"torch {torch.__version__}")  # fmt: skip


if __name__ == "__main__":
    main()
