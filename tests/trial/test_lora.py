"""LoRA: what is trained, what is kept, and that merging changes no output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint, held_out
from sft_tune.trial.data import gather, prepare
from sft_tune.trial.load import load_checkpoint
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import Trainee, set_up

Configure = Callable[..., TrialConfig]
CPU = torch.device("cpu")


@pytest.fixture
def trainee_of(tmp_path: Path) -> Callable[[TrialConfig], Trainee]:
    def make(config: TrialConfig) -> Trainee:
        data = prepare(config.task, config.data, config.model, cache=tmp_path / "prepared")
        return set_up(config, data, CPU)

    return make


def logits(trainee: Trainee, module: torch.nn.Module) -> torch.Tensor:
    module.eval()
    with torch.inference_mode():
        batch = gather(trainee.data.validation, torch.arange(8), CPU)
        answer: torch.Tensor = module(**batch.inputs).logits
    return answer


def test_only_updates_and_the_head_are_trained(sentences: Configure, trainee_of: Any) -> None:
    trainee = trainee_of(sentences(model={"lora_rank": 3, "lora_targets": "query, value"}))
    module = trainee.model.module
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    plain = trainee_of(sentences())
    assert torch.equal(logits(trainee, module), logits(plain, plain.model.module))
    trainee.set_training_mode()
    for step in range(3):
        train_step(trainee, step)
    after = module.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    attention = "bert.encoder.layer.{}.attention.self.{}.lora_{}.default.weight"
    updates = {
        attention.format(i, layer, factor)
        for i in (0, 1)
        for layer in ("query", "value")
        for factor in "AB"
    }
    assert changed == updates | {"classifier.weight", "classifier.bias"}
    assert before[attention.format(0, "query", "A")].shape == (3, 16)
    depths = trainee.model.blocks.depths
    assert {depths[key] for key in updates} == {1, 2}


def test_an_update_is_its_formula(sentences: Configure, trainee_of: Any) -> None:
    trainee = trainee_of(
        sentences(model={"lora_rank": 2, "lora_alpha": 6.0, "lora_targets": "intermediate.dense"})
    )
    layer = trainee.model.module.bert.encoder.layer[0].intermediate.dense
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert not second.any()
    with torch.no_grad():
        second.normal_()
    x = torch.randn(5, 16)
    expected = layer.base_layer(x) + 6.0 / 2 * x @ first.T @ second.T
    assert torch.allclose(layer(x), expected, atol=1e-5)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("averaging", ["none", "ema"])
def test_a_checkpoint_gives_the_outputs_of_the_trial(
    runner: Any, sentences: Configure, merge: bool, averaging: str
) -> None:
    config = sentences(
        model={"lora_rank": 4, "lora_dropout": 0.1, "lora_merge": merge},
        training={"learning_rate": 0.02, "averaging": averaging, "ema_decay": 0.5},
        objective={"rungs": 1},
    )
    outcome = runner.run(config)
    data = prepare(config.task, config.data, config.model, cache=runner.cache)
    trainee = set_up(config, data, CPU)
    trainee.set_training_mode()
    for step in range(trainee.plan.horizon):
        train_step(trainee, step)
    with trainee.averaged():
        expected = logits(trainee, trainee.model.module)
    loaded = load_checkpoint(Path(outcome.checkpoint))
    assert torch.allclose(logits(trainee, loaded), expected, atol=1e-5)
    names = set(checkpoint.read(runner.paths.best)[0])
    assert any("lora_" in name for name in names) is not merge
    plain = set_up(sentences(), data, CPU).model.module.state_dict()
    assert (names == set(plain)) is merge


def test_a_trial_with_lora_resumes_bit_for_bit(new_runner: Any, sentences: Configure) -> None:
    config = sentences(
        model={"lora_rank": 4, "lora_dropout": 0.1},
        training={"freeze": "gradual", "unfreeze_at": 0.5, "gradient_checkpointing": True},
    )
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    ended = calm.run(config)
    assert ended.reason == "completed"
    for at in range(ended.steps):
        asked = iter([False] * min(at, 1) + [True])
        disturbed.run(config, should_stop=lambda asked=asked: next(asked), checkpoint_seconds=1e9)
    disturbed.run(config)
    assert disturbed.numbers() == calm.numbers()
    assert disturbed.best() == calm.best()


def test_layers_that_are_not_there_are_named_with_those_that_are(
    sentences: Configure, trainee_of: Any
) -> None:
    with pytest.raises(ModelError, match="no layer 'q_proj'; it has query, key, value"):
        trainee_of(sentences(model={"lora_rank": 4, "lora_targets": "q_proj,value"}))


def test_without_peft_the_extra_is_named(
    sentences: Configure, trainee_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"needs peft: pip install 'sft_tune\[lora\]'"):
        trainee_of(sentences(model={"lora_rank": 4}))


NETWORKS = {
    "torchvision:resnet18": "layer1.0.conv1",
    "torchvision:mobilenet_v3_small": "features.1.block.2.0",
    "torchvision:vit_b_32": "encoder.layers.encoder_layer_0.mlp.0",
    "torchvision:swin_t": "features.1.0.mlp.0",
    "torchvision:convnext_tiny": "features.1.0.block.3",
    "timm:vit_tiny_patch16_224": "blocks.0.attn.qkv",
    "timm:resnet10t": "layer1.0.conv1",
    "timm:beit_base_patch16_224": "blocks.0.mlp.fc1",
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_update_of_an_image_network_is_trained(name: str) -> None:
    from sft_tune.spec.model import ModelSpec
    from sft_tune.trial.lora import ADAPTER, add_lora
    from sft_tune.trial.models import build_model

    spec = ModelSpec(name=name, weights="none", lora_rank=2)
    with torch.device("meta"):
        model = build_model("image-classification", spec, ("a", "b"), image_size=64, seed=1)
        add_lora(model, spec, 1, (64, 64))
        model.module.train()
        model.logits({"pixel_values": torch.zeros(2, 3, 64, 64)}).sum().backward()
    updates = {n: p for n, p in model.module.named_parameters() if ".lora_" in n}
    assert f"{NETWORKS[name]}.lora_A.{ADAPTER}.weight" in updates
    assert all(p.grad is not None for p in updates.values())
    trained = {n for n, p in model.module.named_parameters() if p.requires_grad}
    assert trained - set(updates) == {n for n in trained if model.in_head(n)} != set()
    assert not any(model.in_head(n) for n in updates)


@pytest.mark.parametrize("merge", [True, False])
def test_updates_of_convolutions_are_kept_merged_or_not_and_exported(
    runner: Any, digits: Configure, merge: bool, tmp_path: Path
) -> None:
    from sft_tune.trial.export.verify import verify
    from sft_tune.trial.export.write import export

    config = digits(
        data={"image_size": 32, "train_limit": 24, "validation_limit": 8},
        model={
            "name": "timm:mobilenetv3_small_050",
            "dropout": None,
            "lora_rank": 2,
            "lora_merge": merge,
        },
        training={"epochs": 1, "learning_rate": 0.02},
        objective={"rungs": 1},
    )
    outcome = runner.run(config)
    names = set(checkpoint.read(runner.paths.best)[0])
    assert any(".lora_" in name for name in names) is not merge
    out = tmp_path / "exported"
    out.mkdir()
    options: dict[str, Any] = {
        "reference": tmp_path / "reference.safetensors",
        "device": "cpu",
        "cache": runner.cache,
    }
    export(config, runner.paths.best, out, onnx=False, **options)
    found = verify(config, out, call={}, onnx=False, batch_size=16, **options)
    assert found["difference"] < 1e-4
    assert found["metrics"]["loss"] == pytest.approx(outcome.metrics["loss"], rel=1e-3)


@pytest.mark.parametrize("merge", [True, False])
def test_the_test_split_is_measured_with_the_weights_that_were_kept(
    merge: bool, sentences: Configure, runner: Any
) -> None:
    lora = {"lora_rank": 2, "lora_merge": merge}
    data = {"train_limit": None, "test_fraction": 0.2}
    config = sentences(model=lora, data=data, objective={"rungs": 1})
    runner.run(config)
    where: dict[str, Any] = {"device": "cpu", "cache": runner.cache, "batch_size": 8}
    found = held_out.test_metrics(config, runner.paths.best, **where)
    test = prepare(config.task, config.data, config.model, cache=runner.cache, with_test=True).test
    assert found is not None and test is not None
    module = load_checkpoint(runner.paths.best)
    with torch.inference_mode():
        batch = gather(test, torch.arange(len(test)), CPU)
        answer = module(**batch.inputs).logits
    expected = torch.nn.functional.cross_entropy(answer, batch.targets)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
