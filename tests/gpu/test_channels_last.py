"""Channels last on a real GPU: chosen where tensor cores are used, and resumed as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import gather, prepare
from sft_tune.trial.device import autocast, is_reduced
from sft_tune.trial.loop import run_trial
from sft_tune.trial.outcome import Evaluation
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.trainee import set_up

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]

DEVICE = torch.device("cuda:0")


def configured(**training: Any) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "task": "image-classification",
            "data": {"source": "sklearn:digits", "train_limit": 256, "validation_limit": 64},
            "model": {"name": "builtin:convnet", "weights": "none"},
            "training": {"epochs": 2, "batch_size": 64, "learning_rate": 0.003, **training},
            "objective": {"rungs": 2},
            "seed": 3,
        }
    )


@pytest.mark.parametrize("precision", ["auto", "fp32", "tf32", "fp16"])
def test_images_lie_channels_last_where_tensor_cores_read_them(
    tmp_path: Path, precision: str
) -> None:
    config = configured(precision=precision)
    data = prepare(config.task, config.data, config.model, cache=tmp_path)
    trainee = set_up(config, data, DEVICE)
    model, seen = trainee.model, []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0].is_contiguous(memory_format=torch.channels_last))

    for part in model.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_pre_hook(note)
    batch = gather(data.train, torch.arange(16), DEVICE, normalize=model.normalize)
    with autocast(DEVICE, trainee.dtype):
        loss = model.logits(batch.inputs).float().square().mean()
    loss.backward()
    assert seen and set(seen) == {is_reduced(config.training.precision, DEVICE)}
    for parameter in model.module.parameters():
        assert (
            parameter.grad is None
            or parameter.grad.stride() == parameter.stride()
            or (1 in parameter.shape)
        )


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "adafactor", "lion"])
def test_a_resumed_trial_goes_on_as_the_one_that_was_not_stopped(
    tmp_path: Path, optimizer: str
) -> None:
    config = configured(optimizer=optimizer, averaging="ema")

    def run(name: str, should_stop: Callable[[], bool] = lambda: False) -> list[Evaluation]:
        seen: list[Evaluation] = []
        run_trial(
            config,
            TrialPaths(tmp_path / name),
            device=str(DEVICE),
            cache=tmp_path / "cache",
            report=lambda evaluation: seen.append(evaluation) is None,
            should_stop=should_stop,
            checkpoint_seconds=0.0,
            evaluation_batch_size=64,
        )
        return seen

    calm = run("calm")
    asked = iter([False] * 3 + [True])
    stopped = [*run("stopped", lambda: next(asked)), *run("stopped")]
    assert [e.step for e in stopped] == [e.step for e in calm]
    for one, other in zip(stopped, calm, strict=True):
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=2e-2)
