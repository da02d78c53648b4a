"""Detectors: COCO's metric on known boxes, models by rule, and a trial that goes on exactly."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.check import probe
from sft_tune.trial.coco_metrics import average_precision
from sft_tune.trial.data import Batch, BoxSplit
from sft_tune.trial.detectors import build_detector
from sft_tune.trial.export.verify import verify
from sft_tune.trial.export.write import export
from sft_tune.trial.load import load_checkpoint
from sft_tune.trial.losses import IGNORED
from sft_tune.trial.models import BuiltModel, build_model
from sft_tune.trial.tasks import detection

STUDIES = Path(__file__).resolve().parents[3] / "studies" / "local"


def split_of(boxes: list[list[float]], labels: list[int], crowds: list[int]) -> BoxSplit:
    """One image of 100x100 pixels."""
    return BoxSplit(
        pixels=np.zeros(30000, np.uint8),
        offsets=np.array([0, 30000]),
        sizes=np.array([[100, 100]]),
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        box_labels=np.array(labels, np.int64),
        crowds=np.array(crowds, np.uint8),
        targets=np.array([len(labels)]),
    )


def found(*rows: list[float]) -> Any:
    """Detections of that image, with a row that does not count."""
    return np.array([[*rows, [-1.0] * 6]], np.float32)


def test_the_average_precision_is_that_of_known_boxes() -> None:
    split = split_of([[10, 10, 30, 30], [50, 50, 90, 90]], [0, 1], [0, 0])
    exact = [[10, 10, 30, 30, 0.9, 0], [50, 50, 90, 90, 0.8, 1]]
    assert average_precision(split, found(*exact), 2) == pytest.approx({"map": 1, "map_50": 1})
    # The wrong class finds nothing, and is itself one mistake.
    swapped = [[*row[:5], 1 - row[5]] for row in exact]
    assert average_precision(split, found(*swapped), 2) == {"map": 0.0, "map_50": 0.0}
    # Moved by a tenth: 18 of 22 rows are common, an IoU of 0.82: good at 7 of the 10 thresholds.
    moved = [[10, 12, 30, 32, 0.9, 0], exact[1]]
    assert average_precision(split, found(*moved), 2) == pytest.approx(
        {"map": (0.7 + 1) / 2, "map_50": 1.0}
    )
    # A surer mistake before the only right one of a class: precision 1/2 at every recall.
    mistaken = [[60, 10, 80, 30, 0.95, 0], *exact]
    assert average_precision(split, found(*mistaken), 2)["map"] == pytest.approx(0.75)
    # In a crowd it does not count.
    crowd = split_of([[10, 10, 30, 30], [50, 5, 90, 40], [50, 50, 90, 90]], [0, 0, 1], [0, 1, 0])
    assert average_precision(crowd, found(*mistaken), 2)["map"] == pytest.approx(1.0)
    assert average_precision(split, found(), 2) == {"map": 0.0, "map_50": 0.0}


def library_models() -> list[str]:
    from torchvision.models import detection as library
    from torchvision.models import list_models

    names = list_models(module=library)
    own = ["fcos_resnet18_fpn", "retinanet_resnet34_fpn", "fasterrcnn_resnext50_32x4d_fpn"]
    return [*(n for n in names if not n.startswith(("mask", "keypoint"))), *own]


@pytest.mark.parametrize("name", library_models())
def test_every_detector_gets_a_head_by_rule(name: str) -> None:
    model = ModelSpec(name=f"torchvision:{name}", weights="none")
    with torch.device("meta"):
        built = build_model("object-detection", model, ("a", "b"), seed=1)
    assert built.detector and built.blocks.count > 2
    sizes = {part.shape[0] for part in built.module.parameters()}
    assert sizes & {3, 2 * 3, 3 * 9, 6 * 3}  # the background is a class
    heads = [n for n, _ in built.module.named_parameters() if built.in_head(n)]
    assert heads and not any(n.startswith("backbone.body") for n in heads)


def test_what_is_no_detector_is_told() -> None:
    def build(name: str, **settings: Any) -> None:
        model = ModelSpec(name=f"torchvision:{name}", weights="none", **settings)
        build_model("object-detection", model, ("a", "b"), seed=1, image_size=None)

    with pytest.raises(ModelError, match="learns from more than boxes"):
        build("maskrcnn_resnet50_fpn")
    with pytest.raises(ModelError, match="did you mean fcos_resnet50_fpn"):
        build("fcos_resnet50_fpm")
    with pytest.raises(ModelError, match="no detector 'torchvision:fcos_resnet19_fpn'"):
        build("fcos_resnet19_fpn")
    with pytest.raises(ModelError, match="model.dropout: detectors have none"):
        build("fcos_resnet18_fpn", dropout=0.1)
    with pytest.raises(ModelError, match="data.image_size: ssd300_vgg16 takes images of 300"):
        model = ModelSpec(name="torchvision:ssd300_vgg16", weights="none")
        build_model("object-detection", model, ("a",), seed=1, image_size=64)


def test_weights_are_of_a_detector_or_of_its_backbone(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    def build(name: str) -> BuiltModel:
        model = ModelSpec(name=f"torchvision:{name}", weights=str(tmp_path / "w.safetensors"))
        return build_model("object-detection", model, ("a", "b"), seed=1)

    torch.manual_seed(5)
    classifier = resnet18().state_dict()
    save_file(classifier, tmp_path / "w.safetensors")
    built = build("fcos_resnet18_fpn")
    assert built.head == ("backbone.fpn", "head") and built.normalize == ((0.5,) * 3,) * 2
    own = built.module.state_dict()
    name = "layer1.0.bn1.running_mean"
    assert torch.equal(own["backbone.body.conv1.weight"], classifier["conv1.weight"])
    assert torch.equal(own[f"backbone.body.{name}"], classifier[name])
    # As torchvision has it, pretrained batch norms are fixed.
    assert not any(isinstance(part, nn.BatchNorm2d) for part in built.module.modules())

    detector = build_detector("fcos_resnet18_fpn", {"num_classes": 91}).state_dict()
    save_file(detector, tmp_path / "w.safetensors")
    built = build("fcos_resnet18_fpn")
    assert built.head == ("head.classification_head.cls_logits",)
    own = built.module.state_dict()
    for key in ("head.regression_head.bbox_reg.weight", "backbone.fpn.layer_blocks.0.0.weight"):
        assert torch.equal(own[key], detector[key])
    assert own["head.classification_head.cls_logits.weight"].shape[0] == 3
    # What the library's weights expect of pixels.
    assert built.normalize[0] == (0.485, 0.456, 0.406) == tuple(built.module.transform.image_mean)
    with pytest.raises(ModelError, match="does not fit torchvision:retinanet_resnet18_fpn"):
        build("retinanet_resnet18_fpn")
    save_file(classifier, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="does not fit torchvision:fcos_resnet50_fpn"):
        build("fcos_resnet50_fpn")
    with pytest.raises(ModelError, match="cannot take a backbone alone"):
        build("ssdlite320_mobilenet_v3_large")


def inputs_of(images: list[Tensor], boxes: list[list[list[float]]]) -> dict[str, Tensor]:
    height, width = (max(image.shape[i] for image in images) for i in (1, 2))
    pixels = torch.zeros(len(images), 3, height, width)
    corners = torch.zeros(len(images), max(map(len, boxes)), 4)
    labels = torch.full(corners.shape[:2], IGNORED)
    for i, (image, some) in enumerate(zip(images, boxes, strict=True)):
        pixels[i, :, : image.shape[1], : image.shape[2]] = image
        corners[i, : len(some)] = torch.tensor(some).reshape(-1, 4)
        labels[i, : len(some)] = torch.arange(len(some)) % 2
    sizes = torch.tensor([image.shape[1:] for image in images])
    return {"pixel_values": pixels, "sizes": sizes, "boxes": corners, "box_labels": labels}


@pytest.mark.parametrize("family", ["fcos", "fasterrcnn", "retinanet"])
def test_a_detector_answers_the_same_of_an_image_in_any_batch(family: str) -> None:
    model = ModelSpec(name=f"torchvision:{family}_resnet18_fpn", weights="none")
    built = build_model("object-detection", model, ("a", "b"), seed=1, image_size=32)
    generator = torch.Generator().manual_seed(2)
    images = [torch.rand(3, h, w, generator=generator) for h, w in ((32, 40), (48, 32), (33, 33))]
    boxes = [[[2.0, 3.0, 20.0, 30.0], [5.0, 5.0, 35.0, 25.0]], [], [[1.0, 1.0, 30.0, 31.0]]]
    built.module.eval()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with torch.inference_mode():
        whole = built.outputs(inputs_of(images, boxes))
        alone = [built.outputs(inputs_of([a], [b])) for a, b in zip(images, boxes, strict=True)]
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(part.training for part in built.module.modules())
    for name, values in whole.items():
        assert len(values) == 3
        assert torch.equal(values, torch.cat([one[name] for one in alone])), name
    # While it is trained its losses are torchvision's own.
    built.module.train()
    inputs = inputs_of(images, boxes)
    torch.manual_seed(3)
    outputs = built.outputs(inputs)
    batch = Batch(inputs, torch.tensor([2, 0, 1]))
    loss = detection.share_of_loss(outputs, batch, detection.weight(batch), TrainingSpec())
    torch.manual_seed(3)
    with torch.no_grad():
        targets = [
            {"boxes": torch.tensor(some).reshape(-1, 4), "labels": torch.arange(len(some)) % 2 + 1}
            for some in boxes
        ]
        expected = built.module(images, targets)
    assert torch.allclose(loss, sum(expected.values()))
    assert {f"loss_{k.removeprefix('loss_')}" for k in expected} == set(outputs)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18_fpn", "fcos_resnet18_fpn"])
def test_a_detector_does_not_depend_on_what_it_saw_first(name: str) -> None:
    torch.manual_seed(0)
    fresh = build_detector(name, {"num_classes": 3, "min_size": 40}).eval()
    used = build_detector(name, {"num_classes": 3, "min_size": 40}).eval()
    used.load_state_dict(fresh.state_dict())
    images = [torch.rand(3, 200, 240)]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        used([torch.rand(3, 33, 33)])  # filled up to twice its size
    generator: Any = getattr(used, "rpn", used).anchor_generator
    assert {anchor.dtype for anchor in generator.cell_anchors} == {torch.float32}
    with torch.inference_mode():
        first, second = used(images)[0], fresh(images)[0]
    assert torch.equal(first["boxes"], second["boxes"])
    assert torch.equal(first["scores"], second["scores"])


WIDE: dict[str, Any] = {"num_classes": 9, "min_size": 64, "max_size": 1024}
LITE = "ssdlite320_mobilenet_v3_large"


@pytest.mark.parametrize("name", ["fcos", "retinanet", "fasterrcnn", LITE])
def test_boxes_are_made_in_single_precision_of_what_half_precision_says(name: str) -> None:
    """Bfloat16 has one number in four pixels at 1000, which are few in a head's own offsets."""
    torch.manual_seed(0)
    surest = "box_score_thresh" if name == "fasterrcnn" else "score_thresh"
    sizes = {"num_classes": 9} if name == LITE else WIDE
    full_name = name if name == LITE else f"{name}_resnet18_fpn"
    module: Any = build_detector(full_name, {**sizes, surest: 0.0}).eval()
    images = [torch.rand(3, 64, 1000)]
    heads = [getattr(module, "rpn", module).head]
    if hasattr(module, "roi_heads"):
        heads.append(module.roi_heads.box_predictor)
    said: list[Any] = []
    handles = [head.register_forward_hook(lambda *args: said.append(args[2])) for head in heads]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        reduced = module(images)[0]
    for handle in handles:
        handle.remove()
    for head in heads:
        head.register_forward_hook(lambda *_: tree_map(torch.Tensor.float, said.pop(0)))
    with torch.inference_mode():
        exact = module(images)[0]
    assert exact["boxes"].max() > 256
    assert reduced["boxes"].dtype == torch.float32
    assert torch.allclose(reduced["boxes"], exact["boxes"], atol=0.01)
    assert torch.equal(reduced["labels"], exact["labels"])


@pytest.fixture
def scenes(shared: Path, tmp_path: Path) -> Callable[..., TrialConfig]:
    """Make configurations over a few scenes of real photographs, written as COCO's files."""
    path = STUDIES / "scenes.py"
    specification = importlib.util.spec_from_file_location("scenes", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.write_boxes(tmp_path / "scenes", 24)

    def configure(name: str = "fcos_resnet18_fpn", **training: Any) -> TrialConfig:
        weights = shared / "models" / "resnet18-cifar5.safetensors"
        settings: dict[str, Any] = {
            "task": "object-detection",
            "data": {
                "source": str(tmp_path / "scenes"),
                "train_limit": 8,
                "validation_limit": 6,
                "image_size": 32,
            },
            "model": {"name": f"torchvision:{name}", "weights": str(weights)},
            "training": {"epochs": 2, "batch_size": 4, "augment": "flip", **training},
            "objective": {"rungs": 2, "metric": "map"},
            "seed": 3,
        }
        return TrialConfig.model_validate(settings)

    return configure


def test_a_stopped_trial_goes_on_bit_for_bit_is_loaded_and_exported(
    scenes: Callable[..., TrialConfig], new_runner: Callable[[str], Any], tmp_path: Path
) -> None:
    config = scenes(learning_rate=1e-3, color_jitter=0.2)
    whole, broken = new_runner("whole"), new_runner("broken")
    assert whole.run(config).reason == "completed"
    left = iter(range(1))
    assert broken.run(config, should_stop=lambda: next(left, None) is None).reason == "stopped"
    outcome = broken.run(config)
    assert outcome.reason == "completed" and outcome.resumed_from == 1
    assert broken.numbers() == whole.numbers()
    assert broken.best()[0] == whole.best()[0]
    first, last = (rung.metrics for rung in whole.evaluations)
    assert last["loss"] < first["loss"]
    parts = ("loss_classification", "loss_bbox_regression", "loss_bbox_ctrness")
    assert last["loss"] == pytest.approx(sum(last[part] for part in parts))

    module: Any = load_checkpoint(broken.paths.best)
    assert module.labels == ("airplane", "frog")
    with torch.inference_mode():
        answers = module([torch.rand(3, 80, 96)])
    assert set(answers[0]) == {"boxes", "scores", "labels"}

    folder = tmp_path / "exported"
    folder.mkdir()
    options: dict[str, Any] = {
        "device": "cpu",
        "cache": broken.cache,
        "onnx": False,
        "reference": tmp_path / "reference",
    }
    facts = export(config, broken.paths.best, folder, **options)
    assert facts["outputs"] == "boxes" and (folder / "detectors.py").is_file()
    checked = verify(config, folder, call=facts["call"], batch_size=8, **options)
    assert checked["difference"] < 1e-5
    assert checked["metrics"]["map"] == pytest.approx(outcome.value)
    settings = json.loads((folder / "model.json").read_text())
    assert settings["arguments"] == {"num_classes": 3, "min_size": 32, "max_size": 53}
    photo = tmp_path / "scenes" / "test" / "001.png"
    script = [sys.executable, str(folder / "load_model.py"), str(photo)]
    subprocess.run(script, check=True)
    with pytest.raises(ModelError, match="leave --format onnx out"):
        export(config, broken.paths.best, folder, **{**options, "onnx": True})


def test_check_knows_boxes_and_a_frozen_backbone_is_trained_above(
    scenes: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    config = scenes(freeze="backbone", epochs=1)
    facts = probe(config, [4], device="cpu", cache=tmp_path / "prepared")
    assert facts["labels"] == ["airplane", "frog"]
    assert facts["batch_sizes"][0]["ok"] and 0 <= facts["metrics"]["map"] <= 1
    assert facts["trained_parameters"] < facts["parameters"]
