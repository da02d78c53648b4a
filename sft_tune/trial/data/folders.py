"""Sources that are paths: a folder of images or sounds, a table file, a folder of tables."""

from __future__ import annotations

import glob
from pathlib import Path

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.tasks import TASKS, Task
from sft_tune.trial.data.coco import CocoFiles, find_coco
from sft_tune.trial.data.columns import reads_files
from sft_tune.trial.data.examples import (
    Examples,
    Source,
    SplitName,
    did_you_mean,
    folder_identity,
    listed,
    walk,
)
from sft_tune.trial.data.tables import READERS, Tables

_SUFFIXES = (
    ".avif .bmp .gif .ico .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp"
)
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
AUDIO_SUFFIXES = frozenset(".aif .aiff .au .caf .flac .mp3 .oga .ogg .opus .w64 .wav".split())
SPLIT_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}


class MaskFolder:
    """A `Source` of folders with ``images`` and ``masks``; ``images/a.jpg`` has ``masks/a.png``."""

    def __init__(self, folders: dict[SplitName, Path]) -> None:
        """Take the folder of each split that there is."""
        self._folders = folders

    def has(self, split: SplitName, *, ask: bool = True) -> bool:
        """Tell whether there is a folder of ``split``."""
        return split in self._folders

    def known_labels(self, split: SplitName) -> list[str] | None:
        """Return None: the labels stand in the masks."""
        return None

    def identity(self, split: SplitName) -> str:
        """Return a digest of the files of the split's folder."""
        return folder_identity(self._folders[split])

    def read(self, split: SplitName) -> Examples:
        """List the images with their masks, sorted by path."""
        folder = self._folders[split]
        images, masks = folder / "images", folder / "masks"
        for part in (images, masks):
            if not part.is_dir():
                raise DataError(
                    f"{folder} has no folder `{part.name}`; put images into {images}, and the mask "
                    f"of each, a PNG file of the same name, into {masks}."
                )
        found = [entry.path for entry in walk(images) if _suffix(entry.name) in IMAGE_SUFFIXES]
        paths = [Path(path) for path in sorted(found)]
        if not paths:
            raise DataError(f"{images} has no images (known are {_SUFFIXES}).")
        labels = [(masks / path.relative_to(images)).with_suffix(".png") for path in paths]
        if missing := [p for p, mask in zip(paths, labels, strict=True) if not mask.is_file()]:
            raise DataError(
                f"{len(missing)} images have no mask: {listed(missing, 5)}. Put the mask of each, "
                f"a PNG file of the same name, into {masks}, or remove the image."
            )
        return Examples(paths, labels, lambda i: str(paths[i]))


class ClassFolder:
    """A `Source` of folders whose subfolders are the classes; images or sounds may lie deeper."""

    def __init__(self, folders: dict[SplitName, Path], audio: bool) -> None:
        """Take the folder of each split that there is, and which files count in them."""
        self._folders = folders
        self._what = "sounds" if audio else "images"
        self._suffixes = AUDIO_SUFFIXES if audio else IMAGE_SUFFIXES

    def has(self, split: SplitName, *, ask: bool = True) -> bool:
        """Tell whether there is a folder of ``split``."""
        return split in self._folders

    def known_labels(self, split: SplitName) -> list[str] | None:
        """Return the names of the class folders."""
        return subfolders(self._folders[split])

    def identity(self, split: SplitName) -> str:
        """Return a digest of the files of the split's folder."""
        return folder_identity(self._folders[split])

    def read(self, split: SplitName) -> Examples:
        """List the files, sorted by class and path: the disk's order differs by machine."""
        folder = self._folders[split]
        paths: list[Path] = []
        labels: list[str] = []
        empty: list[str] = []
        for name in subfolders(folder):
            found = [e.path for e in walk(folder / name) if _suffix(e.name) in self._suffixes]
            paths += [Path(path) for path in sorted(found)]
            labels += [name] * len(found)
            if not found:
                empty.append(name)
        if empty and split == "train":
            raise DataError(
                f"{folder}: no {self._what} in the class folders {listed(empty)} (known are "
                f"{' '.join(sorted(self._suffixes))}). Remove them, or name the right data.source."
            )
        return Examples(paths, labels, lambda i: str(paths[i]))


def _suffix(name: str) -> str:
    """Return the lower-case suffix of a file name (quicker than pathlib, for many files)."""
    return name[name.rfind(".") :].lower()


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in ``folder``, sorted; hidden ones are left out."""
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def tables_in(folder: Path, stem: str = "*") -> list[Path]:
    """Return the table files of a split in ``folder``, sorted.

    They are ``stem.csv`` (or another table's suffix), or parts ``stem-00000-of-00002.csv``, or all
    tables of the folder ``stem``. With ``*``: all tables directly in ``folder``.
    """
    name = glob.escape(stem)
    patterns = ["*"] if stem == "*" else [f"{name}.*", f"{name}-[0-9]*"]
    found = {p for pattern in patterns for p in folder.glob(pattern) if _is_table(p)}
    if not found and stem != "*" and (folder / stem).is_dir():
        found = set(tables_in(folder / stem))
    if len(kinds := sorted({p.suffix.lower() for p in found})) > 1:
        raise DataError(
            f"{folder} has tables of several kinds for one split ({listed(kinds)}: "
            f"{listed(sorted(p.name for p in found), 6)}). Name the file in data.train, "
            "data.validation and data.test."
        )
    return sorted(found)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() in READERS and path.is_file() and not path.name.startswith(".")


def open_path(task: Task, data: DataSpec) -> Source:
    """Open ``data.source``, a file or a folder.

    Raises:
        DataError: where it does not exist or holds nothing that is known.
    """
    root = Path(data.source).expanduser()
    if not root.exists():
        near = did_you_mean(root.name, _siblings(root)) or "."
        raise DataError(f"data.source: no file or folder {root}{near} Give an existing path.")
    if TASKS[task].boxes:
        return _with_boxes(root, task, data)
    if root.is_file() and TASKS[task].masks:
        raise DataError(
            f"data.source {root} is a file, but masks are read from a folder with images/ and "
            "masks/ (in train/, validation/, test/), or from a function: python:file.py:function."
        )
    if root.is_file():
        return _open_file(root, task, data)
    if TASKS[task].masks:
        return MaskFolder(_split_folders(root, data))
    if not reads_files(task) or _holds_tables(root, data):
        return Tables(_split_tables(root, data), task, data)
    return ClassFolder(_split_folders(root, data), TASKS[task].input == "audio")


def _with_boxes(root: Path, task: Task, data: DataSpec) -> Source:
    """Open annotations of boxes: COCO's, or a table."""
    if root.is_file() and root.suffix.lower() == ".json":
        files: dict[SplitName, Path] = {"train": root}
        for split, name in (("validation", data.validation), ("test", data.test)):
            if name is not None:
                files[split] = root.parent / name  # type: ignore[index]
        if missing := [path for path in files.values() if not path.is_file()]:
            raise DataError(f"no file {listed(missing)}; it is named in data. Give one there is.")
        return CocoFiles(files)
    if root.is_file():
        return _open_file(root, task, data)
    if (found := find_coco(root, data)) is not None:
        return found
    if not _holds_tables(root, data):
        raise DataError(
            f"data.source {root} has no annotations. Give COCO's (train/annotations.json and the "
            "like, or annotations/instances_train.json), or tables (train.jsonl with image, boxes "
            "and labels)."
        )
    return Tables(_split_tables(root, data), task, data)


def _siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []


def _open_file(path: Path, task: Task, data: DataSpec) -> Source:
    if not _is_table(path):
        raise DataError(
            f"data.source {path} is a file of an unknown kind. Known are {listed(READERS)}, "
            "or a folder of them, or a folder of images or sounds (one subfolder a class)."
        )
    if data.train is not None:
        raise DataError(
            f"data.train is {data.train!r}, but data.source {path} is one file. Make the folder "
            "the source, or leave data.train out."
        )
    files: dict[SplitName, list[Path]] = {"train": [path]}
    for split, name in (("validation", data.validation), ("test", data.test)):
        if name is not None:
            files[split] = _named_tables(path.parent, split, name)  # type: ignore[index]
    return Tables(files, task, data)


def _named(data: DataSpec, split: SplitName) -> str | None:
    """Return what the study file names as ``split``."""
    return {"train": data.train, "validation": data.validation, "test": data.test}[split]


def _named_tables(folder: Path, split: str, name: str) -> list[Path]:
    path = folder / name
    found = [path] if _is_table(path) else tables_in(path) if path.is_dir() else []
    if not found and not path.exists():
        found = tables_in(folder, name) if "/" not in name else []
    if not found:
        known = sorted(p.name for p in folder.iterdir() if _is_table(p))
        raise DataError(
            f"data.{split} is {name!r}, but {path} is no table ({listed(READERS)}) and no folder "
            f"of tables{did_you_mean(name, known) or '.'} {folder} has: {listed(known) or 'none'}."
        )
    return found


def _holds_tables(root: Path, data: DataSpec) -> bool:
    """Tell whether a folder is one of tables that list images or sounds."""
    if data.train is not None:
        path = root / data.train
        inside = path.is_dir() and not subfolders(path) and tables_in(path)
        return bool(
            _is_table(path) or inside or (not path.exists() and tables_in(root, data.train))
        )
    if (root / "train").is_dir() and not tables_in(root / "train"):
        return False
    return bool(tables_in(root, "train") or (not subfolders(root) and tables_in(root)))


def _split_tables(root: Path, data: DataSpec) -> dict[SplitName, list[Path]]:
    """Find the table files of each split of the folder ``root``."""
    files: dict[SplitName, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        if (name := _named(data, split)) is not None:
            files[split] = _named_tables(root, split, name)
        elif found := next((t for n in names if (t := tables_in(root, n))), None):
            files[split] = found
    if "train" not in files:
        if files:
            raise _no_train(root, files)
        files["train"] = tables_in(root)
    if not files["train"]:
        raise DataError(
            f"data.source {root} has no tables ({listed(READERS)}). Give a folder with train.csv "
            "or the like, or one file."
        )
    return files


def _split_folders(root: Path, data: DataSpec) -> dict[SplitName, Path]:
    """Find the folder of each split of the folder ``root``."""
    folders: dict[SplitName, Path] = {}
    for split, names in SPLIT_NAMES.items():
        if (name := _named(data, split)) is not None:
            if not (root / name).is_dir():
                raise DataError(
                    f"data.{split} is {name!r}, but {root / name} is no folder"
                    f"{did_you_mean(name, subfolders(root)) or '.'} "
                    f"{root} has: {listed(subfolders(root)) or 'none'}."
                )
            folders[split] = root / name
            continue
        # A folder `train` with images but no subfolders is a class of that name (railways).
        splits = [root / n for n in names if (root / n).is_dir() and subfolders(root / n)]
        if splits:
            folders[split] = splits[0]
    if "train" not in folders:
        if folders:
            raise _no_train(root, folders)
        folders["train"] = root
    if not subfolders(folders["train"]):
        raise DataError(
            f"{folders['train']} has no subfolders; a folder of examples needs one for each class, "
            "named by the class, with its files inside."
        )
    return folders


def _no_train(root: Path, found: dict[SplitName, list[Path]] | dict[SplitName, Path]) -> DataError:
    return DataError(
        f"data.source {root} has {listed(found)} but no `train`. Name the training split in "
        "data.train."
    )
