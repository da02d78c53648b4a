"""What a step does on a real GPU: it waits for nothing, and is replayed as a graph to the same end.

Skipped where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import prepare
from sft_tune.trial.loop import run_trial
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import set_up

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
    # Of the compiler, on what it does with this GPU.
    pytest.mark.filterwarnings("ignore"),
]

DEVICE = "cuda:0"


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.cuda.set_sync_debug_mode("default")


def configured(**training: Any) -> TrialConfig:
    """Make a configuration of 20 steps, every fifth of 12 examples in place of 64."""
    settings = {
        "task": "image-classification",
        "data": {
            "source": "sklearn:digits",
            "image_size": 32,
            "train_limit": 268,
            "validation_limit": 64,
        },
        "model": {"name": "torchvision:resnet18", "weights": "none"},
        "training": {
            "epochs": 4,
            "batch_size": 64,
            "learning_rate": 0.001,
            "augment": "flip_crop",
            "precision": "fp32",
            **training,
        },
        "objective": {"rungs": 4},
        "seed": 3,
    }
    return TrialConfig.model_validate(settings)


def trained(folder: Path, config: TrialConfig, compiled: bool) -> tuple[Outcome, list[Evaluation]]:
    seen: list[Evaluation] = []
    outcome = run_trial(
        config,
        TrialPaths(folder / str(compiled)),
        device=DEVICE,
        cache=folder / "cache",
        report=lambda rung: seen.append(rung) or True,  # type: ignore[func-returns-value]
        should_stop=lambda: False,
        checkpoint_seconds=0.0,
        evaluation_batch_size=32,
        compiled=compiled,
    )
    return outcome, seen


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"optimizer": "sgd", "learning_rate": 0.05, "clip_norm": 1.0},
        {"averaging": "swa", "swa_start": 0.25},
        {"freeze": "blocks", "freeze_blocks": 2},
        {"precision": "bf16"},
        {"precision": "fp16"},
    ],
)
def test_a_trial_of_graphs_has_the_curve_of_another(
    training: dict[str, Any], tmp_path: Path
) -> None:
    config = configured(**training)
    _, calm = trained(tmp_path, config, False)
    outcome, replayed = trained(tmp_path, config, True)
    assert outcome.reason == "completed"
    assert outcome.note.startswith("compiled in ") and ", with CUDA graphs: " in outcome.note
    assert "not compiled" not in outcome.note
    rel = 2e-2 if config.training.precision == "fp32" else 1e-1
    for ours, theirs in zip(replayed, calm, strict=True):
        assert ours.step == theirs.step
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=rel, abs=0.02)
        assert ours.metrics["loss"] == pytest.approx(theirs.metrics["loss"], rel=5 * rel, abs=0.1)


def test_graphs_give_their_memory_back(tmp_path: Path) -> None:
    trained(tmp_path / "warm-up", configured(), True)
    allocated, reserved = torch.cuda.memory_allocated(DEVICE), torch.cuda.memory_reserved(DEVICE)
    trained(tmp_path / "again", configured(), True)
    assert torch.cuda.memory_allocated(DEVICE) <= allocated
    assert torch.cuda.memory_reserved(DEVICE) <= reserved


def test_a_step_does_not_wait_for_the_device(tmp_path: Path) -> None:
    config = configured()
    data = prepare(config.task, config.data, config.model, cache=tmp_path)
    trainee = set_up(config, data, torch.device(DEVICE))
    trainee.set_training_mode()
    train_step(trainee, 0)  # makes what is kept for those after it
    torch.cuda.set_sync_debug_mode("error")
    for step in range(1, 4):
        train_step(trainee, step)
