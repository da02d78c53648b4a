"""Images with masks: read, resized, mirrored and moved together, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sft_tune.errors import DataError, StudyFileError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.load import parse_study
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data import Prepared, gather, prepare
from sft_tune.trial.losses import IGNORED

MODEL = ModelSpec(name="torchvision:lraspp_mobilenet_v3_large", weights="none")
SIZE = (16, 8)


def scene(i: int) -> np.ndarray[Any, Any]:
    """A mask whose pixel of class 1 is somewhere else in each, and a row that is ignored."""
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[i % 8, i % 16] = 1
    mask[(i + 1) % 8] = 255
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images that show their masks: red is 10 times the index, 200 where it is ignored."""
    for kind in ("images", "masks"):
        (tmp_path / "scenes/train" / kind).mkdir(parents=True)
    for i in range(10):
        mask = scene(i)
        red = np.where(mask == 255, 200, mask * 10).astype(np.uint8)
        pixels = np.stack([red, red, red], axis=2)
        Image.fromarray(pixels).save(tmp_path / f"scenes/train/images/{i}.png")
        picture = Image.fromarray(mask)
        if i % 2:
            picture.putpalette([7 * k % 256 for k in range(768)])
            assert picture.mode == "P"
        picture.save(tmp_path / f"scenes/train/masks/{i}.png")
    return tmp_path / "scenes"


def prepared(source: Path, **data: Any) -> Prepared:
    spec = DataSpec(source=str(source), **data)
    return prepare("semantic-segmentation", spec, MODEL, cache=source.parent / "cache")


def replace(folder: Path, mask: np.ndarray[Any, Any], mode: str | None = None) -> None:
    image = Image.fromarray(mask)
    (image.convert(mode) if mode else image).save(folder / "train/masks/3.png")


def seen(pixels: torch.Tensor) -> torch.Tensor:
    """Return the targets that an image of `folder` shows; what a crop fills up does not count."""
    red = pixels[:, 0].round().long()
    return torch.where(red == 200, IGNORED, red // 10)


def test_a_mask_has_the_pixels_of_its_image(folder: Path) -> None:
    data = prepared(folder, classes=["ground", "thing"])
    assert data.labels == ("ground", "thing")
    assert data.facts["examples"] == {"train": 8, "validation": 2, "test": None}
    whole = ((0.0,), (1 / 255,))
    batch = gather(data.train, torch.arange(8), "cpu", normalize=whole)
    assert batch.targets.shape == (8, 8, 16)
    assert torch.equal(batch.targets, seen(batch.inputs["pixel_values"]))
    assert data.train.targets.tolist() == [7 * 16] * 8


@pytest.mark.parametrize("augment", ["flip", "flip_crop"])
def test_masks_are_augmented_with_their_images(folder: Path, augment: str) -> None:
    data = prepared(folder)
    torch.manual_seed(0)
    rows, whole = torch.arange(8).repeat(8), ((0.0,), (1 / 255,))
    plain = gather(data.train, rows, "cpu", normalize=whole)
    batch = gather(data.train, rows, "cpu", normalize=whole, augment=augment)
    assert not torch.equal(plain.targets, batch.targets)
    shown = seen(batch.inputs["pixel_values"])
    counted = batch.targets != IGNORED
    assert torch.equal(batch.targets[counted], shown[counted])
    # What is ignored is so in the mask, or was filled up with black.
    black = batch.inputs["pixel_values"][:, 0] == 0
    assert ((shown == IGNORED) | black)[~counted].all()
    assert (counted.sum(dim=(1, 2)) < 7 * 16).any() == (augment == "flip_crop")


def test_masks_are_resized_without_new_classes(folder: Path) -> None:
    data = prepared(folder, image_size=32)
    assert data.train.masks is not None and data.train.masks.shape[1:] == (32, 32)
    assert set(np.unique(data.train.masks)) <= {0, 1, 2}


def test_missing_masks_are_told(folder: Path) -> None:
    (folder / "train/masks/3.png").unlink()
    with pytest.raises(DataError, match=r"1 images have no mask: .*images/3\.png\. Put the mask"):
        prepared(folder)
    for path in (folder / "train/masks").iterdir():
        path.unlink()
    (folder / "train/masks").rmdir()
    with pytest.raises(DataError, match="has no folder `masks`"):
        prepared(folder)


def test_masks_that_do_not_fit_are_told(folder: Path) -> None:
    replace(folder, np.ones((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"images/3\.png is of 4x4 pixels, its image of 16x8"):
        prepared(folder)
    replace(folder, np.full((8, 16), 7, np.uint8))
    with pytest.raises(DataError, match=r"3\.png has the index 7, but data.classes names 2"):
        prepared(folder, classes=["ground", "thing"])
    replace(folder, np.zeros((8, 16), np.uint8), "RGB")
    with pytest.raises(DataError, match=r"3\.png cannot be read: .*its mode is RGB; write one"):
        prepared(folder)
    (folder / "train/masks/3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"masks/3\.png cannot be read"):
        prepared(folder)


def test_a_class_that_train_lacks_is_told(folder: Path) -> None:
    for kind in ("images", "masks"):
        (folder / "validation" / kind).mkdir(parents=True)
    image, mask = (folder / "train" / kind / "3.png" for kind in ("images", "masks"))
    (folder / "validation/images/3.png").write_bytes(image.read_bytes())
    (folder / "validation/masks/3.png").write_bytes(mask.read_bytes())
    Image.fromarray(np.full((8, 16), 5, np.uint8)).save(folder / "validation/masks/3.png")
    with pytest.raises(DataError, match="has the index 5, but train has 2 classes"):
        prepared(folder)


@pytest.mark.parametrize(
    ("sections", "path", "rule"),
    [
        ({"training": {"auto_augment": "randaugment"}}, "training.auto_augment", "no meaning"),
        ({"training": {"erasing": 0.2}}, "training.erasing", "no meaning"),
        ({"space": {"mix": ["none", "mixup"]}}, "space.mix", "no meaning"),
        ({"model": {"name": "builtin:convnet", "weights": "none"}}, "model.name", "makes no masks"),
        ({"data": {"source": "sklearn:digits"}}, "data.source", "has no masks"),
        ({"objective": {"metric": "accuracy"}}, "objective.metric", "does not fit"),
    ],
)
def test_what_does_not_fit_masks_is_told(sections: dict[str, Any], path: str, rule: str) -> None:
    study = {
        "name": "x",
        "task": "semantic-segmentation",
        "data": {"source": "."},
        "model": MODEL.model_dump(include={"name", "weights"}),
        "budget": {"trials": 1},
    }
    with pytest.raises(StudyFileError) as caught:
        parse_study({**study, **sections}, root=".")
    assert [problem.path for problem in caught.value.problems] == [path]
    assert rule in caught.value.problems[0].rule
