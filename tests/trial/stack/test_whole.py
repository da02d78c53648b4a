"""Whole models in a stack: each has the numbers, statistics and files that it has alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint
from sft_tune.trial.convnet import ConvNet
from sft_tune.trial.outcome import Evaluation
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.stack.shared import NotStackableError
from tests.trial.stack.driver import Driver, alone, go_on

# Rounding grows from step to step where batch norm has few examples.
ROUNDING = {"rel": 1e-3, "abs": 1e-4}
# What there is: every optimizer, schedules and clipping, head and blocks at rates of their own.
TABLE: list[dict[str, Any]] = [
    {},
    {"optimizer": "sgd", "schedule": "one_cycle", "clip_norm": 0.1, "learning_rate": 0.05},
    {"optimizer": "adam", "weight_decay": 0.1, "epochs": 3, "head_multiplier": 5.0},
    {"optimizer": "sgd", "nesterov": True, "momentum": 0.5, "layer_decay": 0.5, "l1": 0.01},
    {"weight_decay": 0.5, "layer_decay": 0.7, "clip_value": 0.01, "label_smoothing": 0.2},
]


@pytest.fixture
def models(digits: Callable[..., TrialConfig]) -> Callable[..., TrialConfig]:
    """Make configurations of a network with batch norm: 6 steps of 8, the last of 4."""

    def configure(seed: int = 5, model: dict[str, Any] | None = None, **training: Any) -> Any:
        return digits(
            seed=seed,
            data={"train_limit": 44},
            model={"dropout": None, **(model or {})},
            training={"augment": "none", **training},
        )

    return configure


def same(found: list[Evaluation], expected: list[Evaluation]) -> None:
    assert [(e.progress, e.step) for e in found] == [(e.progress, e.step) for e in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], **ROUNDING)
        assert one.train_loss == pytest.approx(other.train_loss, **ROUNDING)
        assert one.learning_rate == other.learning_rate
        assert one.gradient_norm == pytest.approx(other.gradient_norm, **ROUNDING)
        moved = other.update_ratio  # None after steps at a learning rate of 0
        assert one.update_ratio == (None if moved is None else pytest.approx(moved, rel=1e-2))


def same_files(one: Path, other: Path) -> None:
    """Compare the best weights, and statistics of batch norm more closely."""
    found, expected = (checkpoint.read(TrialPaths(path).best) for path in (one, other))
    assert found[0].keys() == expected[0].keys()
    for name, tensor in expected[0].items():
        near = 1e-5 if "running_" in name else 1e-3
        torch.testing.assert_close(found[0][name], tensor, rtol=near * 10, atol=near)
    assert found[1]["card"] == expected[1]["card"]


def test_each_model_of_a_stack_is_what_it_is_alone(
    models: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    configs = {f"t{i}": models(seed=i, **training) for i, training in enumerate(TABLE)}
    driver = Driver(tmp_path, go_on)
    late = configs.pop("t4")
    for name, config in configs.items():
        driver.enter(name, config)
    # It enters in the middle of the others' epoch, so that their last batches are not its own.
    driver.work(until=lambda: len(driver.seen.get("t0", [])) == 1)
    driver.enter("t4", late)
    driver.work()
    for name, config in {**configs, "t4": late}.items():
        outcome, expected = alone(config, tmp_path / f"alone-{name}")
        same(driver.seen[name], expected)
        found = driver.outcomes[name]
        assert (found.reason, found.steps) == (outcome.reason, outcome.steps)
        assert found.flags == outcome.flags
        same_files(tmp_path / name, tmp_path / f"alone-{name}")


def test_models_of_any_batch_size_stack(
    models: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of 44 examples: 5 of 8 and one of 4, 2 of 16 and one of 12, one of all.
    configs = {
        f"t{i}": models(seed=i, batch_size=size, **training)
        for i, (size, training) in enumerate(zip((8, 16, 64, 8), TABLE, strict=False))
    }
    driver = Driver(tmp_path, go_on)
    for name, config in configs.items():
        driver.enter(name, config)
        driver.work(until=lambda name=name: name in driver.seen)
    plain, last = ConvNet.get_buffer, "blocks.2.norm2.num_batches_tracked"

    def get_buffer(module: ConvNet, name: str) -> torch.Tensor:
        return plain(module, name) if name != last else torch.empty(2**60)

    with monkeypatch.context() as patch:
        patch.setattr(ConvNet, "get_buffer", get_buffer)
        with pytest.raises(RuntimeError, match="allocate memory"):
            driver.enter("more", models(seed=9))
    driver.work()
    assert driver.outcomes.keys() == configs.keys()
    for name, config in configs.items():
        same(driver.seen[name], alone(config, tmp_path / f"alone-{name}")[1])
        same_files(tmp_path / name, tmp_path / f"alone-{name}")


def test_a_pruned_model_leaves_and_one_that_diverges_spoils_no_other(
    models: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    driver = Driver(tmp_path, lambda name, rung: name != "bad" or rung.progress < 50)
    good = models(seed=1)
    wild = models(seed=3, optimizer="sgd", learning_rate=1e30, clip_norm=None, l1=1.0)
    for name, config in {"bad": models(seed=2), "good": good, "wild": wild}.items():
        driver.enter(name, config)
    driver.work()
    reasons = {name: outcome.reason for name, outcome in driver.outcomes.items()}
    assert reasons == {"good": "completed", "bad": "pruned", "wild": "diverged"}
    same(driver.seen["good"], alone(good, tmp_path / "alone")[1])
    same_files(tmp_path / "good", tmp_path / "alone")


@pytest.mark.parametrize("how", ["stacked", "alone", "killed"])
def test_a_model_that_was_stopped_or_killed_in_a_stack_goes_on_stacked_or_alone(
    models: Callable[..., TrialConfig], tmp_path: Path, how: str
) -> None:
    configs = {"one": models(seed=1, optimizer="sgd"), "two": models(seed=2)}
    driver = Driver(tmp_path, go_on)
    for name, config in configs.items():
        driver.enter(name, config)
    driver.work(until=lambda: len(driver.seen.get("two", [])) == 2)
    if how != "killed":  # else it is left as it stands: at a rung that nobody has answered
        for name in configs:
            driver.stack.stop(name)
        driver.work()
    again = Driver(tmp_path, go_on)
    for name, config in configs.items():
        if how != "alone":
            again.enter(name, config)
        else:
            again.outcomes[name], again.seen[name] = alone(config, tmp_path / name)
    again.work()
    for name, config in configs.items():
        assert again.outcomes[name].resumed_from > 0
        expected = alone(config, tmp_path / f"whole-{name}")[1]
        # What was told after the last checkpoint is told again.
        first = again.seen[name][0].progress
        before = [rung for rung in driver.seen[name] if rung.progress < first]
        same(before + again.seen[name], expected)
        same_files(tmp_path / name, tmp_path / f"whole-{name}")


def test_a_model_that_was_killed_alone_goes_on_in_a_stack(
    models: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(name: str, evaluation: Evaluation) -> bool:
        if evaluation.progress == 75:
            raise KilledError
        return True

    config = models(seed=1)
    with pytest.raises(KilledError):
        alone(config, tmp_path / "one", kill)
    driver = Driver(tmp_path, go_on)
    driver.enter("two", models(seed=2))
    driver.enter("one", config)
    driver.work()
    assert driver.outcomes["one"].resumed_from == 6
    same(driver.seen["one"], alone(config, tmp_path / "whole")[1][2:])
    same_files(tmp_path / "one", tmp_path / "whole")


def test_frozen_weights_and_statistics_are_there_once(
    models: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "convnet.safetensors"
    save_file(ConvNet(10).state_dict(), weights)
    frozen = {"freeze": "blocks", "freeze_blocks": 2}
    configs = {
        f"t{seed}": models(seed=seed, model={"weights": str(weights)}, **frozen) for seed in (1, 2)
    }
    driver = Driver(tmp_path, go_on)
    for name, config in configs.items():
        driver.enter(name, config)
    one, two = (member.trainee.model.module for member in driver.stack._members.values())
    assert one.get_parameter("stem.weight") is two.get_parameter("stem.weight")
    assert one.get_buffer("norm.running_mean") is two.get_buffer("norm.running_mean")
    assert one.get_parameter("head.weight") is not two.get_parameter("head.weight")
    driver.work()
    for name, config in configs.items():
        same(driver.seen[name], alone(config, tmp_path / f"alone-{name}")[1])
        same_files(tmp_path / name, tmp_path / f"alone-{name}")


def test_what_a_stack_cannot_do_exactly_is_refused(
    models: Callable[..., TrialConfig], sentences: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    refused = {
        "draws random numbers": models(model={"dropout": 0.1}),
        "draws random": sentences(),  # its encoder has dropout
        "not those of the stack": models(augment="flip"),
        "not those": models(optimizer="lion"),
        # Random weights are other ones for each seed.
        "frozen weights are others": models(freeze="blocks", seed=6),
    }
    for reason, config in refused.items():
        driver = Driver(tmp_path, go_on)
        if "frozen" in reason:
            driver.enter("first", models(freeze="blocks", seed=5))
        with pytest.raises(NotStackableError, match=reason):
            driver.enter("other", config)
        assert len(driver.stack) == ("frozen" in reason)
        driver.stack.drop("first")


def test_a_module_whose_stack_is_something_else_is_refused(
    models: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ConvNet.forward

    def by_level(module: ConvNet, pixels: torch.Tensor) -> torch.Tensor:
        logits = plain(module, pixels)
        return 1.1 * logits if torch._C._functorch.is_batchedtensor(logits) else logits

    monkeypatch.setattr(ConvNet, "forward", by_level)
    with pytest.raises(NotStackableError, match="something else"):
        Driver(tmp_path, go_on).enter("one", models())

    def by_value(module: ConvNet, pixels: torch.Tensor) -> torch.Tensor:
        return plain(module, -pixels if pixels.mean() > 0 else pixels)

    monkeypatch.setattr(ConvNet, "forward", by_value)
    with pytest.raises(NotStackableError, match="data-dependent control flow"):
        Driver(tmp_path, go_on).enter("one", models())


def test_a_resnet_of_torchvision_stacks(shared: Path, tmp_path: Path) -> None:
    weights = str(shared / "models" / "resnet18-cifar5.safetensors")
    configs = {
        f"t{seed}": TrialConfig.model_validate(
            {
                "task": "image-classification",
                "data": {"source": str(shared / "data" / "cifar10"), "train_limit": 24}
                | {"validation_limit": 8},
                "model": {"name": "torchvision:resnet18", "weights": weights},
                "training": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01}
                | {"optimizer": "sgd"},
                "objective": {"rungs": 1},
                "seed": seed,
            }
        )
        for seed in (1, 2)
    }
    driver = Driver(tmp_path, go_on)
    for name, config in configs.items():
        driver.enter(name, config)
    driver.work()
    for name, config in configs.items():
        same(driver.seen[name], alone(config, tmp_path / f"alone-{name}")[1])
        same_files(tmp_path / name, tmp_path / f"alone-{name}")


@pytest.fixture
def adapters(
    sentences: Callable[..., TrialConfig], tiny_bert: Path, tmp_path: Path
) -> Callable[..., TrialConfig]:
    """Make configurations of LoRA on an encoder without dropout: 5 steps of 8, the last 7."""
    folder = tmp_path / "without-dropout"
    shutil.copytree(tiny_bert, folder)
    path = folder / "config.json"
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(json.loads(path.read_text()) | none))

    def configure(seed: int = 5, model: dict[str, Any] | None = None, **training: Any) -> Any:
        name = f"transformers:{folder}"
        return sentences(
            seed=seed,
            data={"train_limit": 39},
            model={"name": name, "lora_rank": 2, **(model or {})},
            training={"learning_rate": 0.02, **training},
        )

    return configure


def test_adapters_stack_over_one_backbone(
    adapters: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    configs = {
        "one": adapters(seed=1, optimizer="sgd", epochs=3),
        "two": adapters(seed=2, head_multiplier=3.0, weight_decay=0.3),
        "three": adapters(seed=3),
    }
    driver = Driver(tmp_path, lambda name, rung: name != "three" or rung.progress < 40)
    for name, config in configs.items():
        driver.enter(name, config)
        driver.work(until=lambda name=name: len(driver.seen.get(name, [])) == 1)
        driver.stack.stop("two")  # it goes on alone
    one, three = (driver.stack._members[name].trainee.model.module for name in ("one", "three"))
    shared_ = [name for name, part in one.named_parameters() if part is three.get_parameter(name)]
    own = [name for name, part in one.named_parameters() if part.requires_grad]
    assert {*shared_, *own} == {name for name, _ in one.named_parameters()}
    assert not {*shared_} & {*own} and any("lora_" in name for name in own)
    driver.work()
    assert driver.outcomes["two"].reason == "stopped"
    assert driver.outcomes["three"].reason == "pruned"
    outcome, went_on = alone(configs["two"], tmp_path / "two")
    assert outcome.resumed_from > 0
    for name, config in configs.items():
        found = driver.seen[name] + (went_on if name == "two" else [])
        expected = alone(config, tmp_path / f"alone-{name}")[1]
        same(found, expected[: len(found)])
        if name != "three":
            same_files(tmp_path / name, tmp_path / f"alone-{name}")


def test_adapters_over_random_backbones_train_alone(
    adapters: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    driver = Driver(tmp_path, go_on)
    driver.enter("one", adapters(seed=1, model={"weights": "none"}))
    with pytest.raises(NotStackableError, match="frozen weights are others"):
        driver.enter("two", adapters(seed=2, model={"weights": "none"}))
    driver.stack.drop("one")


def test_models_in_low_precision_stack(models: Callable[..., TrialConfig], tmp_path: Path) -> None:
    configs = {
        f"t{seed}": models(seed=seed, precision="bf16", epochs=1, optimizer="sgd")
        for seed in (1, 2)
    }
    driver = Driver(tmp_path, go_on)
    for name, config in configs.items():
        driver.enter(name, config)
    driver.work()
    for name, config in configs.items():
        expected = alone(config, tmp_path / f"alone-{name}")[1]
        losses = [rung.train_loss for rung in driver.seen[name]]
        assert losses == pytest.approx([rung.train_loss for rung in expected], rel=1e-2)
