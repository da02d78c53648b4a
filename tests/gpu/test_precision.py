"""TF32 on a real GPU: where it is asked for, and never in what is compared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.device import exact, use_tf32
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.stack.trials import Stack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]

DEVICE = torch.device("cuda:0")
FINE, COARSE = 1e-5, 1e-4


@pytest.fixture(autouse=True)
def _tf32_as_it_was() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@torch.inference_mode()
def error_of(layer: nn.Module, given: torch.Tensor) -> float:
    """Return how far ``layer`` is off what it makes in double precision, by the largest number."""
    found = layer.float()(given)
    wanted = layer.double()(given.double())
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("kind", ["matrices", "convolutions"])
def test_products_are_rounded_where_that_is_asked_for_and_exact_inside(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "matrices":
        layer, given = nn.Linear(512, 512).to(DEVICE), torch.randn(512, 512, device=DEVICE)
    else:
        layer = nn.Conv2d(64, 64, 3, padding=1).to(DEVICE)
        given = torch.randn(16, 64, 32, 32, device=DEVICE)
    use_tf32("fp32", DEVICE)
    assert error_of(layer, given) < FINE
    use_tf32("tf32", DEVICE)
    if torch.cuda.get_device_capability(DEVICE) >= (8, 0):
        assert error_of(layer, given) > COARSE
    with exact(DEVICE):
        assert error_of(layer, given) < FINE


@pytest.mark.parametrize("precision", ["auto", "tf32", "fp32"])
def test_networks_with_batch_norm_are_not_refused_by_a_stack(
    tmp_path: Path, precision: str
) -> None:
    stack: Stack[int] = Stack(
        str(DEVICE), tmp_path / "cache", checkpoint_seconds=1e9, evaluation_batch_size=64
    )
    for seed in range(2):
        config = TrialConfig.model_validate(
            {
                "task": "image-classification",
                "data": {"source": "sklearn:digits", "train_limit": 64, "validation_limit": 32},
                "model": {"name": "builtin:convnet", "weights": "none"},
                "training": {"epochs": 1, "batch_size": 16, "precision": precision},
                "objective": {"rungs": 1},
                "seed": seed,
            }
        )
        stack.enter(seed, config, TrialPaths(tmp_path / str(seed)), lambda _: None)
    assert len(stack) == 2
