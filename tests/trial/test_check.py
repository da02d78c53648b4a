from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from sft_tune.errors import DataError, ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.trial import check, stand_in, step
from sft_tune.trial.check import probe
from sft_tune.trial.loop import run_trial
from sft_tune.trial.paths import TrialPaths

Configure = Callable[..., TrialConfig]


def facts_of(config: TrialConfig, batch_sizes: list[int], tmp_path: Path) -> dict[str, Any]:
    facts = probe(config, batch_sizes, device="cpu", cache=tmp_path / "prepared")
    again: dict[str, Any] = json.loads(json.dumps(facts))
    return again


def run(config: TrialConfig, folder: Path, cache: Path | None = None) -> None:
    run_trial(
        config,
        TrialPaths(folder),
        device="cpu",
        cache=cache or folder / "cache",
        report=lambda _: True,
        should_stop=lambda: False,
        checkpoint_seconds=60.0,
        evaluation_batch_size=32,
    )


def test_a_probe_tells_what_a_trial_will_cost(digits: Configure, tmp_path: Path) -> None:
    config = digits(training={"freeze": "backbone"}, objective={"metric": "matthews"})
    facts = facts_of(config, [8, 32], tmp_path)
    assert facts["labels"] == ["0", "1", "2", "3"]
    assert facts["examples"] == {"train": 48, "validation": 24}
    assert facts["parameters"] > 50_000
    assert facts["trained_parameters"] == 48 * 4 + 4
    assert set(facts["metrics"]) == {"loss", "accuracy", "f1_macro", "matthews"}
    assert facts["evaluation_seconds"] > 0 and facts["setup_seconds"] > 0
    # That augmentation keeps it from.
    assert (facts["freeze"], facts["features_seconds"]) == ("backbone", None)
    small, large = facts["batch_sizes"]
    assert (small["batch_size"], small["steps_per_epoch"], small["ok"]) == (8, 6, True)
    assert (large["batch_size"], large["steps_per_epoch"], large["ok"]) == (32, 2, True)
    assert small["seconds_per_step"] > 0 and small["peak_memory"] > 10**7


def images_through_the_backbone(work: Callable[[], object]) -> int:
    """Return how many images the first convolution is given while ``work`` is done."""
    seen: list[int] = []

    def note(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
            seen.append(len(inputs[0]))

    handle = register_module_forward_hook(note)
    try:
        work()
    finally:
        handle.remove()
    return sum(seen)


@pytest.fixture
def frozen(digits: Configure, tmp_path: Path) -> TrialConfig:
    """Return a configuration that trains a head on features, of a backbone that all trials have."""
    fresh = digits(training={"augment": "none", "epochs": 1})
    run(fresh, tmp_path / "made")
    weights = str(TrialPaths(tmp_path / "made").best)
    return digits(
        model={"weights": weights}, training={"augment": "none", "epochs": 40, "freeze": "backbone"}
    )


def test_steps_of_a_frozen_backbone_are_on_features(frozen: TrialConfig, tmp_path: Path) -> None:
    def passed(*sizes: int, features: bool = True) -> int:
        options = {"device": "cpu", "cache": tmp_path / "new", "feature_cache": features}
        return images_through_the_backbone(lambda: probe(frozen, sizes, **options))

    # Steps pass nothing through the backbone, and validation's 24 images do not either.
    assert passed(8) == passed(8, 16, 32) < passed(8, features=False)
    facts = probe(frozen, [8], device="cpu", cache=tmp_path / "new", feature_cache=False)
    assert facts["features_seconds"] is None


def test_features_cost_once_until_they_are_kept(frozen: TrialConfig, tmp_path: Path) -> None:
    cache = tmp_path / "prepared"
    assert facts_of(frozen, [8], tmp_path)["features_seconds"] > 0
    assert not list(cache.rglob("*features*"))  # a part was made, of which nothing is kept
    run(frozen, tmp_path / "trial", cache)
    assert list(cache.rglob("*features*"))
    assert facts_of(frozen, [8], tmp_path)["features_seconds"] == 0


def test_a_backbone_drawn_anew_costs_its_features_in_every_trial(
    frozen: TrialConfig, digits: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "_seconds_of_an_example", lambda *_: 100.0)
    own = digits(training={"augment": "none", "freeze": "backbone"})
    for config, once in ((frozen, True), (own, False)):
        facts = facts_of(config, [8], tmp_path)
        assert facts["features_seconds"] == (7200 if once else 0)
        assert (facts["setup_seconds"] > 7200) == (not once)


def test_a_step_is_the_mean_of_those_on_features_and_those_after(
    frozen: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(trainee: step.Trainee, at: int) -> Any:
        on_features = bool(trainee.features)
        assert on_features == (at < 0.25 * trainee.plan.horizon)
        time.sleep(0 if on_features else 0.2)
        return step.train_step(trainee, at)

    monkeypatch.setattr(check, "train_step", slow)
    training = {"freeze": "head_first", "unfreeze_at": 0.25}
    config = frozen.model_copy(update={"training": frozen.training.model_copy(update=training)})
    (batch,) = facts_of(config, [8], tmp_path)["batch_sizes"]
    assert batch["seconds_per_step"] >= 0.75 * 0.2


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
