from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sft_tune.errors import DataError


def test_subfolders_are_classes_and_validation_is_taken_from_train(
    prepare_images, image_folder, make
):
    data = prepare_images(image_folder)
    assert data.labels == ("cat", "dog")
    assert data.train.pixels.shape == (16, 3, 8, 8)
    assert len(data.validation) == 4
    for split in (data.train, data.validation):
        assert ((make.values(split) >= 100) == (split.targets == 1)).all()
    together = [*make.values(data.train), *make.values(data.validation)]
    assert sorted(together) == [*range(10), *range(100, 110)]
    assert data.test is None
    assert data.facts["test_from"] == "none"
    assert data.facts["validation_from"] == "train"


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_split_folders_are_found_by_their_names(prepare_images, make, tmp_path, validation):
    root = tmp_path / "set"
    for split, start in (("train", 0), (validation, 50), ("test", 90)):
        make.images(root / split / "a", range(start, start + 3))
        make.images(root / split / "b" / "deeper", range(start + 10, start + 13))
    data = prepare_images(root, with_test=True)
    assert make.values(data.train).tolist() == [0, 1, 2, 10, 11, 12]
    assert make.values(data.validation).tolist() == [50, 51, 52, 60, 61, 62]
    assert make.values(data.test).tolist() == [90, 91, 92, 100, 101, 102]
    assert data.facts["validation_from"] == "source"
    assert data.facts["test_from"] == "source"


def test_split_folders_can_be_named(prepare_images, make, tmp_path):
    for split, start in (("A", 0), ("B", 50)):
        make.images(tmp_path / "set" / split / "x", range(start, start + 3))
        make.images(tmp_path / "set" / split / "y", range(start + 10, start + 13))
    data = prepare_images(tmp_path / "set", train="B", validation="A")
    assert make.values(data.train).tolist() == [50, 51, 52, 60, 61, 62]
    assert make.values(data.validation).tolist() == [0, 1, 2, 10, 11, 12]


def test_a_class_may_be_called_train(prepare_images, make, tmp_path):
    make.images(tmp_path / "set" / "train", range(5))
    make.images(tmp_path / "set" / "bus", range(10, 15))
    assert prepare_images(tmp_path / "set").labels == ("bus", "train")


def test_hidden_and_foreign_files_are_left_out(prepare_images, image_folder):
    (image_folder / ".cache").mkdir()
    (image_folder / "cat" / ".DS_Store").write_bytes(b"x")
    (image_folder / "cat" / "notes.txt").write_text("x")
    data = prepare_images(image_folder)
    assert data.labels == ("cat", "dog")
    assert len(data.train) + len(data.validation) == 20


def test_a_link_to_its_own_parent_does_not_loop(prepare_images, image_folder):
    (image_folder / "cat" / "again").symlink_to(image_folder / "cat", target_is_directory=True)
    data = prepare_images(image_folder)
    assert len(data.train) + len(data.validation) == 20


def test_splits_are_the_same_whatever_the_hash_seed_and_the_order_on_disk(
    prepare_images, make, tmp_path
):
    for name, order in (("here", 1), ("there", -1)):
        for value in range(20)[::order]:
            make.images(tmp_path / name / f"c{value % 2}", [value])
    code = (
        "import sys; from pathlib import Path\n"
        "from sft_tune.spec.data import DataSpec\n"
        "from sft_tune.spec.model import ModelSpec\n"
        "from sft_tune.trial.data import prepare\n"
        "p = prepare('image-classification', DataSpec(source=sys.argv[1], test_fraction=0.1),\n"
        "    ModelSpec(name='builtin:convnet'), cache=Path(sys.argv[2]), with_test=True)\n"
        "print([s.pixels[:, 0, 0, 0].tolist() for s in (p.train, p.validation, p.test)])\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "there"), str(tmp_path / "other cache")],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    data = prepare_images(tmp_path / "here", test_fraction=0.1, with_test=True)
    splits = (data.train, data.validation, data.test)
    assert there.stdout.strip() == str([make.values(s).tolist() for s in splits])


def wrong_folders(make, root):
    """(settings, what the message says) for folders that are wrong in one way each."""
    return {
        "missing": (root / "nowhere", {}, "no file or folder"),
        "near": (make.images(root / "pets" / "a", [1]).parent.parent / "pest", {}, "'pets'"),
        "flat": (make.images(root / "flat", [1, 2]), {}, "needs one for each class"),
        "named": (
            make.images(root / "n" / "training" / "a", [1]).parent.parent,
            {"train": "trainning"},
            "did you mean 'training'?",
        ),
        "only test": (make.images(root / "t" / "test" / "a", [1]).parents[1], {}, "data.train"),
        "unknown file": (root / "notes.docx", {}, "unknown kind"),
        "one class": (
            make.images(root / "one" / "a", [1, 2]).parent,
            {},
            "examples of one class only, 'a'",
        ),
    }


@pytest.mark.parametrize(
    "case", ["missing", "near", "flat", "named", "only test", "unknown file", "one class"]
)
def test_a_wrong_folder_is_explained(prepare_images, make, tmp_path, case):
    (tmp_path / "notes.docx").write_text("x")
    source, settings, message = wrong_folders(make, tmp_path)[case]
    with pytest.raises(DataError, match=message):
        prepare_images(source, **settings)


def test_an_empty_class_folder_is_an_error_in_train_only(prepare_images, make, tmp_path):
    for split in ("train", "val"):
        make.images(tmp_path / split / "a", [1, 2])
        make.images(tmp_path / split / "b", [3, 4])
        make.images(tmp_path / split / "c", [])
    with pytest.raises(DataError, match=r"no images in the class folders c"):
        prepare_images(tmp_path, validation="val")
    make.images(tmp_path / "train" / "c", [5, 6])
    assert prepare_images(tmp_path).labels == ("a", "b", "c")


def test_labels_of_the_test_folder_are_checked_without_reading_it(prepare_images, make, tmp_path):
    for label in ("a", "b"):
        make.images(tmp_path / "train" / label, range(5))
    (tmp_path / "test" / "zebra").mkdir(parents=True)
    (tmp_path / "test" / "zebra" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="the test split .* labels .* not have: zebra"):
        prepare_images(tmp_path)
    (tmp_path / "test" / "zebra").rename(tmp_path / "test" / "a")
    assert prepare_images(tmp_path).facts["examples"] == {"train": 8, "validation": 2, "test": None}
