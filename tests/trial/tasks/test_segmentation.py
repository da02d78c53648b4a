"""Masks: losses and metrics against their formulas, models, and a trial that goes on exactly."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.check import probe
from sft_tune.trial.data import Batch, ImageSplit, Prepared
from sft_tune.trial.export.verify import verify
from sft_tune.trial.export.write import export
from sft_tune.trial.load import load_checkpoint
from sft_tune.trial.losses import IGNORED
from sft_tune.trial.models import build_model
from sft_tune.trial.tasks import segmentation

STUDIES = Path(__file__).resolve().parents[3] / "studies" / "local"


def test_the_mean_iou_is_that_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 3, (4, 5, 6), generator=generator)
    targets[0, 0] = IGNORED
    logits = torch.randn(4, 4, 5, 6, generator=generator)
    logits[:, 3] = -10.0  # a class that is not there, and never found
    batch = Batch({}, targets)
    parts = [segmentation.keep(logits[rows], Batch({}, targets[rows])) for rows in ([0], [1, 2, 3])]
    kept = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    split = ImageSplit(np.zeros((4, 3, 1, 1), np.uint8), np.zeros(4))
    data = Prepared(("a", "b", "c", "d"), split, split, None, {})
    found = segmentation.metrics(["loss"], kept, split, data)
    true, given = targets.numpy(), logits.argmax(dim=1).numpy()
    counted = true != IGNORED
    shares = [
        (counted & (true == k) & (given == k)).sum()
        / (counted & ((true == k) | (given == k))).sum()
        for k in range(3)
    ]
    assert found["mean_iou"] == pytest.approx(np.mean(shares))
    assert found["pixel_accuracy"] == pytest.approx((true == given)[counted].mean())
    expected = functional.cross_entropy(logits, targets, ignore_index=IGNORED)
    assert found["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert segmentation.weight(batch) == counted.sum()


@pytest.mark.parametrize("sizes", [[3], [1, 2], [1, 1, 1]])
def test_shares_of_pixels_add_up_to_the_loss_and_its_gradient(sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 3, (3, 4, 4), generator=generator)
    targets[0] = IGNORED  # one part counts nothing at all
    targets[1, :2] = IGNORED
    outputs = torch.randn(3, 3, 4, 4, generator=generator)
    whole, parts = (outputs.clone().requires_grad_() for _ in range(2))
    expected = functional.cross_entropy(whole, targets, ignore_index=IGNORED)
    expected.backward()
    total = segmentation.weight(Batch({}, targets))
    found = torch.zeros(())
    for some, part in zip(parts.split(sizes), targets.split(sizes), strict=True):
        found = found + segmentation.share_of_loss(some, Batch({}, part), total, TrainingSpec())
    found.backward()
    assert torch.allclose(found, expected)
    assert whole.grad is not None and parts.grad is not None
    assert torch.allclose(parts.grad, whole.grad)


def test_a_batch_without_a_pixel_that_counts_has_no_loss() -> None:
    targets = torch.full((2, 4, 4), IGNORED)
    total = segmentation.weight(Batch({}, targets))
    outputs = torch.randn(2, 3, 4, 4)
    assert segmentation.share_of_loss(outputs, Batch({}, targets), total, TrainingSpec()) == 0


def library_models() -> list[str]:
    from torchvision.models import list_models, segmentation

    return list_models(module=segmentation)


@pytest.mark.parametrize("name", library_models())
def test_every_model_of_torchvision_gets_a_head_by_rule(name: str) -> None:
    model = ModelSpec(name=f"torchvision:{name}", weights="none")
    with torch.device("meta"):
        built = build_model("semantic-segmentation", model, ("a", "b", "c", "d"), seed=1)
        assert len(built.head) == (2 if name.startswith("lraspp") else 1)
        assert built.blocks.count > 2
        pixels = torch.zeros(1, 3, 65, 70)
        built.module.eval()
        assert built.logits({"pixel_values": pixels}).shape == (1, 4, 65, 70)


def test_models_that_make_no_masks_are_told() -> None:
    with pytest.raises(ModelError, match="no model 'torchvision:resnet18' that makes masks"):
        build_model(
            "semantic-segmentation", ModelSpec(name="torchvision:resnet18"), ("a", "b"), seed=1
        )


@pytest.fixture
def scenes(shared: Path, tmp_path: Path) -> Callable[..., TrialConfig]:
    """Make configurations over scenes of real photographs, written as files."""
    path = STUDIES / "scenes.py"
    specification = importlib.util.spec_from_file_location("scenes", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.write_masks(tmp_path / "scenes")

    def configure(name: str) -> TrialConfig:
        settings: dict[str, Any] = {
            "task": "semantic-segmentation",
            "data": {
                "source": str(tmp_path / "scenes"),
                "train_limit": 24,
                "validation_limit": 8,
                "image_size": 32,
                "classes": ["background", "airplane", "frog"],
            },
            "model": {"name": name, "weights": "none"},
            "training": {"epochs": 1, "batch_size": 8, "augment": "flip_crop"},
            "objective": {"rungs": 3, "metric": "mean_iou"},
            "seed": 3,
        }
        return TrialConfig.model_validate(settings)

    return configure


@pytest.mark.parametrize("name", ["torchvision:lraspp_mobilenet_v3_large", "transformers:tiny"])
def test_a_stopped_trial_goes_on_bit_for_bit_is_loaded_and_exported(
    name: str,
    scenes: Callable[..., TrialConfig],
    new_runner: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    config = scenes(name.replace("tiny", str(STUDIES / "segformer_tiny")))
    whole, broken = new_runner("whole"), new_runner("broken")
    assert whole.run(config).reason == "completed"
    left = iter(range(1))
    assert broken.run(config, should_stop=lambda: next(left, None) is None).reason == "stopped"
    outcome = broken.run(config)
    assert outcome.reason == "completed" and outcome.resumed_from == 1
    assert broken.numbers() == whole.numbers()
    assert broken.best()[0] == whole.best()[0]
    module: Any = load_checkpoint(broken.paths.best)
    assert module.labels == ("background", "airplane", "frog")
    with torch.inference_mode():
        answer = module(torch.zeros(1, 3, 32, 32))
    if name.startswith("torchvision"):
        assert answer["out"].shape == (1, 3, 32, 32)
    else:
        assert answer.logits.shape[:2] == (1, 3)
    folder, where = tmp_path / "exported", {"device": "cpu", "cache": broken.cache}
    folder.mkdir()
    options: dict[str, Any] = {**where, "onnx": False, "reference": tmp_path / "reference"}
    facts = export(config, broken.paths.best, folder, **options)
    assert facts["outputs"] == "masks" and (folder / "model.safetensors").is_file()
    found = verify(config, folder, call=facts["call"], batch_size=8, **options)
    assert found["difference"] < 1e-5
    assert found["metrics"]["mean_iou"] == pytest.approx(outcome.value, abs=1e-4)
    if name.startswith("torchvision"):
        photo = tmp_path / "scenes" / "test" / "images" / "000.png"
        script = [sys.executable, str(folder / "load_model.py"), str(photo)]
        told = subprocess.run(script, capture_output=True, text=True, check=True).stdout
        assert "background" in told and str(photo.with_suffix(".mask.png")) in told
        with Image.open(photo.with_suffix(".mask.png")) as mask:
            assert mask.size == (64, 64) and max(mask.get_flattened_data()) < 3


def test_check_knows_masks(scenes: Callable[..., TrialConfig], tmp_path: Path) -> None:
    config = scenes(f"transformers:{STUDIES / 'segformer_tiny'}")
    facts = probe(config, [8], device="cpu", cache=tmp_path / "prepared")
    assert facts["labels"] == ["background", "airplane", "frog"]
    assert facts["batch_sizes"][0]["ok"] and 0 <= facts["metrics"]["mean_iou"] <= 1
