"""Models of timm: heads by its rule, weights from files, sizes, settings, training and export."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data.images import made_for
from sft_tune.trial.export.verify import verify
from sft_tune.trial.export.write import export
from sft_tune.trial.models import BuiltModel, build_model
from sft_tune.trial.optimizers import build_optimizer

# Name -> the modules of its head, and the side of the images.
FAMILIES: dict[str, tuple[tuple[str, ...], int]] = {
    "resnet10t": (("fc",), 64),
    "vit_tiny_patch16_224": (("head_drop", "head"), 32),
    "convnext_atto": (("head.drop", "head.fc"), 64),
    "mobilenetv3_small_050": (("classifier",), 64),
    "efficientnet_lite0": (("classifier",), 64),
    "swin_tiny_patch4_window7_224": (("head.drop", "head.fc"), 224),
    "resnetv2_50": (("head.drop", "head.fc"), 64),
    "deit_tiny_distilled_patch16_224": (("head_drop", "head", "head_dist"), 32),
    "levit_128s": (("head", "head_dist"), 224),
    "densenet121": (("head_drop", "classifier"), 64),
    "vgg11": (("head.drop", "head.fc"), 64),
    "mixer_s32_224": (("head_drop", "head"), 224),
    "regnetx_002": (("head.drop", "head.fc"), 64),
    "dla34": (("head_drop", "fc"), 64),
}


def built(name: str, weights: str = "none", side: int | None = None, **settings: Any) -> BuiltModel:
    model = ModelSpec(name=f"timm:{name}", weights=weights, **settings)
    return build_model("image-classification", model, ("a", "b", "c"), image_size=side, seed=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_a_head_by_rule_and_has_blocks(name: str) -> None:
    head, side = FAMILIES[name]
    with torch.device("meta"):
        made = built(name, side=side)
        assert made.head == head and made.blocks.count >= 4
        made.module.eval()
        pixels = torch.zeros(2, 3, side, side)
        assert made.logits({"pixel_values": pixels}).shape == (2, 3)
        # Layer-wise decay: the head learns fastest, the first block slowest.
        groups = build_optimizer(made, TrainingSpec(layer_decay=0.5)).param_groups
    assert len({group["multiplier"] for group in groups}) > made.blocks.count


def test_weights_come_from_a_file_and_positions_are_resized(tmp_path: Path) -> None:
    torch.manual_seed(5)
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=64, depth=12)
    state = whole.state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    path = str(tmp_path / "vit.safetensors")
    same, smaller = (built("vit_tiny_patch16_224", path, side) for side in (64, 32))
    name = "blocks.3.attn.qkv.weight"
    for made in (same, smaller):
        assert torch.equal(made.module.get_parameter(name), state[name])
        assert made.module.get_parameter("head.weight").shape == (3, 192)
    assert torch.equal(same.module.get_parameter("pos_embed"), state["pos_embed"])
    assert smaller.module.get_parameter("pos_embed").shape == (1, 5, 192)
    again = built("vit_tiny_patch16_224", path, 64)
    assert torch.equal(
        again.module.get_parameter("head.weight"), same.module.get_parameter("head.weight")
    )
    with pytest.raises(ModelError, match="does not fit timm:resnet10t: tensors"):
        built("resnet10t", path)


def test_settings_reach_the_network_and_the_data_has_the_models_own_pixels() -> None:
    with torch.device("meta"):
        made = built("convnext_atto", dropout=0.25, stochastic_depth=0.5)
        assert made.module.get_submodule("head.drop").p == 0.25
        deepest: Any = made.module.get_submodule("stages.3.blocks.1.drop_path")
        assert deepest.drop_prob == 0.5
        with pytest.raises(ModelError, match=r"model\.stochastic_depth: timm:vgg11 has none"):
            built("vgg11", stochastic_depth=0.5)
    assert made.normalize[0] == pytest.approx((0.485, 0.456, 0.406))
    assert built("mobilenetv3_small_050", dropout=0.1).module.drop_rate == 0.1
    assert made_for(ModelSpec(name="timm:nfnet_f0", weights="none")) == 192


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet1O", "none", r"timm has no model 'resnet1O' \(did you mean resnet"),
        ("resnet18.a1_in2k", "none", r"no weights 'resnet18.a1_in2k' \(did you mean resnet18.a1_"),
        ("resnet18", "a1_in2k", r"timm:resnet18 has no weights 'a1_in2k' \(did you mean a1_in1k\?"),
        ("resnet18", "missing.safetensors", "no file missing.safetensors"),
    ],
)
def test_what_timm_does_not_have_is_told(name: str, weights: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        built(name, weights)


def test_without_timm_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'sft_tune\[timm\]'"):
        built("resnet10t")


@pytest.mark.parametrize("task", ["image-classification", "image-regression"])
def test_a_model_is_trained_resumed_and_exported_with_a_script(
    task: str, new_runner: Callable[[str], Any], digits: Any, tmp_path: Path
) -> None:
    data = {"image_size": 32, "train_limit": 32, "validation_limit": 16}
    config: TrialConfig = digits(
        data={**data, "classes": None} if task == "image-regression" else data,
        model={"name": "timm:mobilenetv3_small_050", "dropout": None},
        training={"epochs": 1, "freeze": "backbone", "augment": "none"},
        task=task,
        objective={"metric": "auto"},
    )
    runner = new_runner("one")
    left = iter(range(2))
    assert runner.run(config, should_stop=lambda: next(left, None) is None).reason == "stopped"
    outcome = runner.run(config)
    assert outcome.reason == "completed" and outcome.resumed_from == 2
    assert list(runner.cache.rglob("train_features.npy"))  # its head is a chain of modules
    out, reference = tmp_path / "exported", tmp_path / "reference.safetensors"
    out.mkdir()
    options: dict[str, Any] = {"reference": reference, "device": "cpu", "cache": runner.cache}
    facts = export(config, runner.paths.best, out, onnx=False, **options)
    assert (facts["library"], facts["image_size"]) == ("timm", [32, 32])
    found = verify(config, out, call={}, onnx=False, batch_size=16, **options)
    assert found["difference"] < 1e-5
    name = config.objective.metric
    assert found["metrics"][name] == pytest.approx(outcome.metrics[name], rel=1e-4)
