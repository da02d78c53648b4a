"""Sources with boxes in COCO's format: one file of annotations a split, beside its images.

The format: https://cocodataset.org/#format-data, "Object Detection".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.trial.data.boxes import Raw
from sft_tune.trial.data.examples import Examples, SplitName, did_you_mean, files_identity, listed

NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}


class CocoFiles:
    """A `Source` of files of annotations, with the images that they name."""

    def __init__(self, files: dict[SplitName, Path]) -> None:
        """Take the file of each split that there is."""
        self._files = files

    def has(self, split: SplitName, *, ask: bool = True) -> bool:
        """Tell whether there is a file of ``split``."""
        return split in self._files

    def known_labels(self, split: SplitName) -> list[str] | None:
        """Return None: the labels stand with the boxes."""
        return None

    def identity(self, split: SplitName) -> str:
        """Return a digest of the file, and of the images that it names."""
        path = self._files[split]
        return files_identity([path, *_images(path, _parsed(path))])

    def read(self, split: SplitName) -> Examples:
        """List the images of the file's ``images``, in its order, with their annotations."""
        path = self._files[split]
        parsed = _parsed(path)
        categories = {entry["id"]: str(entry["name"]) for entry in parsed["categories"]}
        ids = [entry["id"] for entry in parsed["images"]]
        rows = {number: i for i, number in enumerate(ids)}
        if len(rows) != len(ids):
            raise DataError(f"{path}: images share an id. Give each its own.")
        found: list[list[Any]] = [[] for _ in ids]
        for entry in parsed["annotations"]:
            name = f"{path}: annotation {entry.get('id')}"
            if entry["image_id"] not in rows:
                raise DataError(f"{name} is of image {entry['image_id']}, which is not in `images`")
            if entry["category_id"] not in categories:
                raise DataError(
                    f"{name} is of category {entry['category_id']}, which is not in `categories` "
                    f"({listed(categories)})."
                )
            found[rows[entry["image_id"]]].append(entry)
        labels = [
            Raw(
                boxes=[entry["bbox"] for entry in entries],
                labels=[categories[entry["category_id"]] for entry in entries],
                form="xywh",
                crowds=[bool(entry.get("iscrowd", 0)) for entry in entries],
                names=[f"annotation {entry.get('id')}" for entry in entries],
            )
            for entries in found
        ]
        images = _images(path, parsed)
        if images and not any(image.is_file() for image in images):
            raise DataError(
                f"{path}: none of its {len(images)} images is there, for example {images[0]}. "
                "Put them beside the file, or into `images` beside it."
            )
        return Examples(images, labels, lambda i: f"{path}, image {images[i].name}")


def _parsed(path: Path) -> dict[str, Any]:
    """Return the contents of a file of annotations, its parts known to be there."""
    try:
        parsed: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Give COCO's annotations.") from None
    needed = {
        "images": ("id", "file_name"),
        "annotations": ("image_id", "category_id", "bbox"),
        "categories": ("id", "name"),
    }
    for part, keys in needed.items():
        entries = parsed.get(part) if isinstance(parsed, dict) else None
        if not isinstance(entries, list):
            raise DataError(
                f"{path} has no list `{part}`; COCO's annotations are images, annotations and "
                "categories. Give another file, or JSON lines with image, boxes and labels."
            )
        for i, entry in enumerate(entries):
            if lacking := [k for k in keys if not isinstance(entry, dict) or k not in entry]:
                raise DataError(f"{path}: entry {i} of `{part}` has no {listed(lacking)}.")
    return parsed


def _images(path: Path, parsed: dict[str, Any]) -> list[Path]:
    """Return the paths of the images: beside the file, or where COCO's own layout has them."""
    names = [str(entry["file_name"]) for entry in parsed["images"]]
    above = path.parent.parent
    folders = [path.parent, path.parent / "images", above, above / "images"]
    # annotations/instances_train2017.json is of the folder train2017.
    folders.append(above / path.stem.rpartition("_")[2])
    there = (f for f in folders if names and (f / names[0]).is_file())
    folder = next(there, folders[0])
    return [folder / name for name in names]


def find_coco(root: Path, data: DataSpec) -> CocoFiles | None:
    """Return the source of the annotations in the folder ``root``; None where it has none.

    Raises:
        DataError: where the study file names a split that is not there, or train is missing.
    """
    files: dict[SplitName, Path] = {}
    for split, names in NAMES.items():
        named = {"train": data.train, "validation": data.validation, "test": data.test}[split]
        if named is not None:
            path = root / named
            found = _in_folder(path) if path.is_dir() else [path] if path.is_file() else []
            if not found and any(root.rglob("*.json")):
                known = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.json"))
                raise DataError(
                    f"data.{split} is {named!r}, but {path} has no annotations"
                    f"{did_you_mean(named, known) or '.'} {root} has: {listed(known, 5)}."
                )
        else:
            found = next((f for name in names if (f := _of_split(root, name))), [])
        if len(found) > 1:
            raise DataError(
                f"{root} has several files for {split}: {listed(found, 4)}. Name one in "
                f"data.{split}."
            )
        if found and found[0].suffix.lower() == ".json":
            files[split] = found[0]
    if "train" not in files and not files and len(alone := _in_folder(root)) == 1:
        files["train"] = alone[0]
    if files and "train" not in files:
        raise DataError(f"{root} has {listed(files)} but no `train`. Name its file in data.train.")
    return CocoFiles(files) if files else None


def _in_folder(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def _of_split(root: Path, name: str) -> list[Path]:
    if (root / name).is_dir() and (found := _in_folder(root / name)):
        return found
    if (root / f"{name}.json").is_file():
        return [root / f"{name}.json"]
    # COCO's own layout; its folder has keypoints and captions, too.
    return sorted((root / "annotations").glob(f"instances_{name}*.json"))
