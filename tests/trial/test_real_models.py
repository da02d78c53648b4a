"""The pretrained models of ../shared on real data, a few steps each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.load import load_checkpoint


@pytest.mark.parametrize("freeze", ["none", "backbone"])
def test_a_pretrained_resnet_learns_ten_classes(runner: Any, shared: Path, freeze: str) -> None:
    config = TrialConfig.model_validate(
        {
            "task": "image-classification",
            "data": {
                "source": str(shared / "data" / "cifar10"),
                "train_limit": 200,
                "validation_limit": 60,
            },
            "model": {
                "name": "torchvision:resnet18",
                "weights": str(shared / "models" / "resnet18-cifar5.safetensors"),
            },
            "training": {
                "epochs": 2,
                "batch_size": 40,
                "optimizer": "sgd",
                "learning_rate": 0.02 if freeze == "none" else 0.2,
                "freeze": freeze,
                "augment": "flip",
            },
            "objective": {"rungs": 2},
            "seed": 0,
        }
    )
    outcome = runner.run(config)
    assert outcome.reason == "completed"
    assert outcome.value > 0.25  # chance: 0.1
    module = load_checkpoint(Path(outcome.checkpoint))
    assert len(module.labels) == 10 and "airplane" in module.labels


def test_a_pretrained_text_encoder_learns_from_a_few_sentences(runner: Any, shared: Path) -> None:
    config = TrialConfig.model_validate(
        {
            "task": "text-classification",
            "data": {
                "source": str(shared / "data" / "subjectivity"),
                "train_limit": 64,
                "validation_limit": 40,
                "max_length": 24,
            },
            "model": {"name": f"transformers:{shared / 'models' / 'minilm-l6'}"},
            "training": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-4},
            "objective": {"rungs": 2},
            "seed": 0,
        }
    )
    outcome = runner.run(config)
    assert outcome.reason == "completed"
    assert outcome.value > 0.65  # chance: 0.5
