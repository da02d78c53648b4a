"""Stacks on a real GPU: numbers of each trial alone, and no step that waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.convnet import ConvNet
from tests.trial.stack.driver import Driver, alone, go_on

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]

DEVICE = "cuda:0"


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_trials_of_a_stack_are_what_they_are_alone_and_wait_for_nothing(
    tmp_path: Path, freeze: str
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "convnet.safetensors"
    save_file(ConvNet(10).state_dict(), weights)

    def configured(seed: int, **training: Any) -> TrialConfig:
        return TrialConfig.model_validate(
            {
                "task": "image-classification",
                "data": {"source": "sklearn:digits", "train_limit": 320, "validation_limit": 64},
                "model": {"name": "builtin:convnet", "weights": str(weights)},
                "training": {"epochs": 3, "freeze": freeze, "precision": "fp32", **training},
                "objective": {"rungs": 2},
                "seed": seed,
            }
        )

    configs = {
        "one": configured(1, batch_size=8, optimizer="sgd"),
        "two": configured(2, batch_size=16, label_smoothing=0.1),
        "three": configured(3, batch_size=8, clip_norm=0.1, weight_decay=0.1),
    }
    driver = Driver(tmp_path, go_on, device=DEVICE)
    for name, config in configs.items():
        driver.enter(name, config)
    driver.stack.work()
    if freeze == "backbone":
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(10):  # the first rung is at step 30
                driver.stack.work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    driver.work()
    for name, config in configs.items():
        expected = alone(config, tmp_path / f"alone-{name}", device=DEVICE)[1]
        assert len(driver.seen[name]) == len(expected) == 2
        for one, other in zip(driver.seen[name], expected, strict=True):
            assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=1e-2)
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-2)
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-2)
