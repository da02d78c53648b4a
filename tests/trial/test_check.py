from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_tune.errors import DataError, ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.trial import check, step
from sft_tune.trial.check import probe

Configure = Callable[..., TrialConfig]


def facts_of(config: TrialConfig, batch_sizes: list[int], tmp_path: Path) -> dict[str, Any]:
    facts = probe(config, batch_sizes, device="cpu", cache=tmp_path / "prepared")
    again: dict[str, Any] = json.loads(json.dumps(facts))
    return again


def test_a_probe_tells_what_a_trial_will_cost(digits: Configure, tmp_path: Path) -> None:
    config = digits(training={"freeze": "backbone"}, objective={"metric": "matthews"})
    facts = facts_of(config, [8, 32], tmp_path)
    assert facts["labels"] == ["0", "1", "2", "3"]
    assert facts["examples"] == {"train": 48, "validation": 24}
    assert facts["parameters"] > 50_000
    assert facts["trained_parameters"] == 48 * 4 + 4
    assert set(facts["metrics"]) == {"loss", "accuracy", "f1_macro", "matthews"}
    assert facts["evaluation_seconds"] > 0 and facts["setup_seconds"] > 0
    small, large = facts["batch_sizes"]
    assert (small["batch_size"], small["steps_per_epoch"], small["ok"]) == (8, 6, True)
    assert (large["batch_size"], large["steps_per_epoch"], large["ok"]) == (32, 2, True)
    assert small["seconds_per_step"] > 0 and small["peak_memory"] > 10**7


def test_a_probe_of_texts(sentences: Configure, tmp_path: Path) -> None:
    facts = facts_of(sentences(), [4], tmp_path)
    assert facts["labels"] == ["neg", "pos"]
    assert facts["batch_sizes"][0]["ok"]


def test_a_batch_size_that_does_not_fit_is_a_fact(
    digits: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(trainee: step.Trainee, at: int) -> Any:
        if trainee.plan.batch_size > 8:
            torch.empty(2**50)
        return step.train_step(trainee, at)

    monkeypatch.setattr(check, "train_step", greedy)
    small, large = facts_of(digits(), [8, 32], tmp_path)["batch_sizes"]
    assert small["ok"] and not large["ok"]
    assert "out of memory" in large["note"] and large["seconds_per_step"] is None
    assert large["steps_per_epoch"] == 2


@pytest.mark.parametrize(
    ("sections", "batch_size", "error", "message"),
    [
        ({"data": {"source": "no/such"}}, 8, DataError, "no/such"),
        ({"model": {"weights": "DEFAULT"}}, 8, ModelError, "or none"),
        (
            {"model": {"name": "torchvision:alexnet"}},
            8,
            ModelError,
            "torchvision:alexnet does not take images of 8x8: .*set data.image_size",
        ),
        (
            {"model": {"name": "torchvision:squeezenet1_1"}, "data": {"image_size": 8}},
            8,
            ModelError,
            "does not take images of 8x8",
        ),
        (
            {"model": {"name": "torchvision:resnet18"}},
            1,
            ModelError,
            "cannot train with batch size 1: .*larger",
        ),
    ],
)
def test_what_cannot_work_is_the_users_error(
    digits: Configure,
    tmp_path: Path,
    sections: dict[str, Any],
    batch_size: int,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        facts_of(digits(**sections), [batch_size], tmp_path)


def test_a_model_that_fails_on_its_inputs_is_the_users_error(
    sentences: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_short(*args: object, **kwargs: object) -> None:
        raise IndexError("index out of range in self")

    monkeypatch.setattr(check, "predict", too_short)
    with pytest.raises(ModelError, match="does not take these texts: index out of range"):
        facts_of(sentences(), [4], tmp_path)
