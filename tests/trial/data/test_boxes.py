"""Images with boxes: read from both formats, shrunk and mirrored together, and what is refused."""

from __future__ import annotations

import json
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
from sft_tune.trial.data import BoxSplit, Prepared, gather, prepare
from sft_tune.trial.data.joined import joined
from sft_tune.trial.losses import IGNORED

MODEL = ModelSpec(name="torchvision:fcos_resnet50_fpn", weights="none")
# Width and height, and the boxes: left, top, right, bottom, label. The second has none.
IMAGES: list[tuple[tuple[int, int], list[tuple[int, int, int, int, str]]]] = [
    ((20, 12), [(2, 1, 8, 9, "cat"), (10, 3, 20, 12, "dog")]),
    ((16, 24), []),
    ((30, 10), [(0, 0, 5, 5, "dog")]),
    ((12, 12), [(4, 4, 6, 6, "cat")]),
]


def draw(folder: Path) -> None:
    """Write the images; red is 250 in cats, green in dogs."""
    folder.mkdir(parents=True)
    for i, ((width, height), boxes) in enumerate(IMAGES):
        pixels = np.zeros((height, width, 3), np.uint8)
        for left, top, right, bottom, label in boxes:
            pixels[top:bottom, left:right, 0 if label == "cat" else 1] = 250
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A folder of both splits, annotated as COCO's are; ids begin anywhere."""
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 9, "name": "ox"}]
    for split in ("train", "valid"):
        draw(tmp_path / "coco" / split)
        images, annotations = [], []
        for i, (_, boxes) in enumerate(IMAGES):
            images.append({"id": 100 + i, "file_name": f"{i}.png"})
            for left, top, right, bottom, label in boxes:
                bbox = [left, top, right - left, bottom - top]
                annotation = {"id": len(annotations) + 1, "image_id": 100 + i, "bbox": bbox}
                annotation["category_id"] = 7 if label == "dog" else 3
                annotations.append(annotation)
        annotations[0]["iscrowd"] = int(split == "valid")
        written = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "coco" / split / "_annotations.coco.json").write_text(json.dumps(written))
    return tmp_path / "coco"


def rows() -> list[dict[str, Any]]:
    return [
        {
            "image": f"images/{i}.png",
            "boxes": [list(box[:4]) for box in boxes],
            "labels": [box[4] for box in boxes],
        }
        for i, (_, boxes) in enumerate(IMAGES)
    ]


def written(folder: Path, train: list[dict[str, Any]]) -> Path:
    if not (folder / "images").exists():
        draw(folder / "images")
    for name, some in (("train", train), ("validation", rows())):
        text = "".join(json.dumps(row) + "\n" for row in some)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


def prepared(source: Path, model: ModelSpec = MODEL, **data: Any) -> Prepared:
    spec = DataSpec(source=str(source), **data)
    return prepare("object-detection", spec, model, cache=source.parent / "cache")


def split_of(data: Prepared) -> BoxSplit:
    assert isinstance(data.train, BoxSplit)
    return data.train


def shows(split: BoxSplit, i: int) -> None:
    """Check that the pixels of image ``i`` lie where its boxes are."""
    image = split.image(i)
    start, end = split.box_offsets[i : i + 2]
    expected = np.zeros_like(image)
    for (left, top, right, bottom), label in zip(
        split.boxes[start:end].astype(int), split.box_labels[start:end], strict=True
    ):
        expected[label, top:bottom, left:right] = 250
    assert (image == expected).all()


def test_both_formats_give_the_same_arrays_in_the_images_own_sizes(
    coco: Path, tmp_path: Path
) -> None:
    data, table = prepared(coco), prepared(written(tmp_path / "table", rows()))
    for one in (data, table):
        split = split_of(one)
        assert one.labels == ("cat", "dog") and len(split) == 4
        assert split.sizes.tolist() == [[12, 20], [24, 16], [10, 30], [12, 12]]
        assert split.targets.tolist() == [2, 0, 1, 1]
        for i in range(4):
            shows(split, i)
        assert one.facts["class_counts"]["train"] == {"cat": 2, "dog": 2}
    assert (split_of(data).pixels == split_of(table).pixels).all()
    validation = data.validation
    assert isinstance(validation, BoxSplit) and validation.crowds.tolist() == [1, 0, 0, 0]
    # What is a crowd is not trained on.
    batch = gather(validation, torch.arange(2), "cpu")
    assert batch.inputs["box_labels"].tolist() == [[1], [IGNORED]]


def test_other_layouts_are_found(coco: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    (folder / "annotations").mkdir(parents=True)
    (coco / "train").rename(folder / "train2017")
    file = folder / "train2017" / "_annotations.coco.json"
    file.rename(folder / "annotations" / "instances_train2017.json")
    data = prepared(folder, validation_fraction=0.5, split_seed=1)
    # The rarest class on an image decides: of the one with nothing but a dog train keeps it.
    assert data.facts["validation_from"] == "train" and len(data.train) == 3
    assert data.validation.targets[0] > 0
    alone = prepared(folder / "annotations" / "instances_train2017.json", split_seed=1)
    assert alone.labels == data.labels
    with pytest.raises(DataError, match="data.train is 'train.json', but .*no annotations"):
        prepared(folder, train="train.json")


def test_boxes_are_said_to_have_width_and_height(tmp_path: Path) -> None:
    some = rows()
    for row in some:
        row["boxes"] = [[a, b, c - a, d - b] for a, b, c, d in row["boxes"]]
    source = written(tmp_path / "table", some)
    (source / "validation.jsonl").unlink()
    split = split_of(prepared(source, box_format="xywh", validation_fraction=0.25, split_seed=3))
    for i in range(len(split)):
        shows(split, i)
    with pytest.raises(DataError, match=r"line 1: box 2, \[10.*-1 wide .*data.box_format: xywh"):
        some[0]["boxes"][1] = [10, 3, 9, 9]
        prepared(written(tmp_path / "table", some))


def test_large_images_are_shrunk_with_their_boxes(tmp_path: Path) -> None:
    source = written(tmp_path / "table", rows())
    split = split_of(prepared(source, image_size=8))
    assert split.sizes[3].tolist() == [8, 8]
    assert split.sizes[2].tolist() == [4, 13]  # the longer side is at most 13
    assert split.boxes[-1].tolist() == pytest.approx([4 / 1.5] * 2 + [4.0] * 2)


def test_images_are_mirrored_with_their_boxes_and_filled_up(coco: Path) -> None:
    split = split_of(prepared(coco))
    torch.manual_seed(1)
    batch = gather(split, torch.arange(4), "cpu", augment="flip")
    inputs = batch.inputs
    assert inputs["pixel_values"].shape == (4, 3, 24, 30) and len(batch) == 4
    torch.manual_seed(1)
    mirrored = torch.rand(4) < 0.5
    assert 0 < mirrored.sum() < 4
    for i in range(4):
        h, w = inputs["sizes"][i].tolist()
        expected = torch.zeros(3, 24, 30)
        for box, label in zip(inputs["boxes"][i], inputs["box_labels"][i], strict=True):
            if label != IGNORED:
                left, top, right, bottom = box.int().tolist()
                assert 0 <= left < right <= w and 0 <= top < bottom <= h
                expected[label, top:bottom, left:right] = 250 / 255
        assert torch.equal(inputs["pixel_values"][i], expected)


def test_splits_are_joined(coco: Path) -> None:
    data = prepared(coco)
    both = joined(data.train, data.validation)
    assert isinstance(both, BoxSplit) and both.targets.tolist() == [2, 0, 1, 1] * 2
    for i in range(8):
        shows(both, i)


def test_a_class_is_chosen(coco: Path) -> None:
    data = prepared(coco, classes=["dog"])
    assert data.labels == ("dog",) and data.train.targets.tolist() == [1, 0, 1, 0]
    with pytest.raises(DataError, match="data.classes names dgo, of which .*did you mean 'dog'"):
        prepared(coco, classes=["dgo"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"boxes": [[2, 1, 8]]}, r"line 1: box 1 is '\[2, 1, 8\]', not four numbers"),
        ({"boxes": [[8, 1, 2, 9]]}, r"line 1: box 1, \[8, 1, 2, 9\], is -6 wide and 8 high"),
        ({"boxes": [[2, 1, 2, 9]]}, "line 1: box 1, .*is 0 wide"),
        ({"boxes": [[2, 1, float("nan"), 9]]}, "line 1: box 1 .*finite"),
        ({"boxes": [[2, 1, 8, 14]]}, "line 1: box 1 reaches .* its image is 20x12 pixels"),
        ({"boxes": [[-3, 1, 8, 9]]}, "1 boxes are not on their image"),
        ({"boxes": [[20.2, 1, 20.9, 9]]}, "line 1: box 1 is at the edge, outside"),
        ({"boxes": None}, r"line 1: `boxes` is 'None', no list.* \[\] for an image without"),
        ({"boxes": []}, "line 1: 0 boxes in `boxes`, but 1 labels in `labels`"),
        ({"labels": [None]}, "line 1: box 1 has the label None"),
        ({"labels": ["cow"]}, None),
        ({"image": "images/none.png"}, "none.png cannot be read|line 1 cannot be read"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    tmp_path: Path, row: dict[str, Any], message: str | None
) -> None:
    good = {"image": "images/0.png", "boxes": [[2, 1, 8, 9]], "labels": ["cat"]}
    some = [{**good, **row}, *rows()[2:]]
    if message is None:  # validation lacks it, which is no fault; the other way round it is
        source = written(tmp_path / "table", some)
        assert prepared(source).labels == ("cat", "cow", "dog")
        train, validation = (source / f"{name}.jsonl" for name in ("train", "validation"))
        text = train.read_text()
        train.write_text(validation.read_text())
        validation.write_text(text)
        message = "labels that train does not have: cow .first at .*validation.jsonl, line 1"
        with pytest.raises(DataError, match=message):
            prepared(source)
        return
    with pytest.raises(DataError, match=message):
        prepared(written(tmp_path / "table", some))


def test_boxes_that_stand_out_by_rounding_are_cut_off(tmp_path: Path) -> None:
    some = rows()
    some[0]["boxes"][1] = [10, 3, 20.7, 12.4]
    split = split_of(prepared(written(tmp_path / "table", some)))
    assert split.boxes[1].tolist() == [10, 3, 20, 12]


def edited(coco: Path, **parts: Any) -> Path:
    file = coco / "train" / "_annotations.coco.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **parts}))
    return coco


def test_broken_annotations_are_told(coco: Path) -> None:
    own = json.loads((coco / "train" / "_annotations.coco.json").read_text())
    first, *rest = own["annotations"]
    for entry, message in (
        ({**first, "category_id": 99}, "annotation 1 is of category 99, which is not in"),
        ({**first, "image_id": 9}, "annotation 1 is of image 9, which is not in `images`"),
        ({"id": 1}, "entry 0 of `annotations` has no image_id, category_id, bbox"),
        ({**first, "bbox": [2, 1, -6, 8]}, "image 0.png: annotation 1, .* is -6 wide"),
        ({**first, "bbox": [15, 1, 8, 8]}, "annotation 1 reaches from .* image is 20x12"),
    ):
        with pytest.raises(DataError, match=message):
            prepared(edited(coco, annotations=[entry, *rest]))
    with pytest.raises(DataError, match="has no list `categories`"):
        prepared(edited(coco, annotations=own["annotations"], categories=None))
    edited(coco, categories=own["categories"])
    with pytest.raises(DataError, match="has no box on its 4 images"):
        prepared(edited(coco, annotations=[]))
    edited(coco, annotations=own["annotations"])
    (coco / "train" / "3.png").unlink()
    with pytest.raises(DataError, match="image 3.png cannot be read"):
        prepared(coco)
    assert prepared(coco, skip_unreadable=True).train.targets.tolist() == [2, 0, 1]
    for image in (coco / "train").glob("*.png"):
        image.unlink()
    with pytest.raises(DataError, match="none of its 4 images is there"):
        prepared(coco)
    (coco / "train" / "_annotations.coco.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        prepared(coco)


def test_a_study_that_does_not_fit_boxes_is_refused() -> None:
    study = {
        "name": "x",
        "task": "object-detection",
        "data": {"source": "sklearn:digits", "label_column": "y"},
        "model": {"name": "transformers:facebook/detr-resnet-50"},
        "training": {"augment": "flip_crop", "mix": "mixup", "label_smoothing": 0.1},
        "objective": {"metric": "accuracy"},
        "budget": {"trials": 1},
    }
    with pytest.raises(StudyFileError) as caught:
        parse_study(study, root=Path("."))
    told = str(caught.value)
    for part in (
        "has no boxes; give COCO's annotations",
        "data.label_column",
        "finds no boxes; use torchvision:NAME",
        "flip_crop would cut boxes apart",
        "training.mix",
        "training.label_smoothing",
        "accuracy",
    ):
        assert part in told, part
