"""Sources of the libraries: torchvision's data sets and scikit-learn's digits."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.tasks import Task
from sft_tune.trial.data.cache import writing
from sft_tune.trial.data.columns import reads_images
from sft_tune.trial.data.examples import (
    Examples,
    SplitName,
    did_you_mean,
    digest,
    folder_identity,
    item_place,
    listed,
    reason,
)

Arguments = dict[str, Any]
_WHOLE: dict[SplitName, Arguments] = {"train": {}}
_FLAG: dict[SplitName, Arguments] = {"train": {"train": True}, "test": {"train": False}}
_TWO: dict[SplitName, Arguments] = {"train": {"split": "train"}, "test": {"split": "test"}}


def _three(validation: str) -> dict[SplitName, Arguments]:
    return {**_TWO, "validation": {"split": validation}}


# The classification sets of torchvision 0.29, and the arguments that choose their splits.
TORCHVISION: dict[str, dict[SplitName, Arguments]] = {
    **dict.fromkeys(
        ("MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNIST", "CIFAR10", "CIFAR100", "USPS"),
        _FLAG,
    ),
    **dict.fromkeys(("SVHN", "STL10", "Food101", "GTSRB", "StanfordCars"), _TWO),
    **dict.fromkeys(("DTD", "Flowers102", "FGVCAircraft", "PCAM", "RenderedSST2"), _three("val")),
    "Country211": _three("valid"),
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Imagenette": {"train": {"split": "train"}, "validation": {"split": "val"}},
    "ImageNet": {"train": {"split": "train"}, "validation": {"split": "val"}},
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "SEMEION", "SUN397"), _WHOLE),
    "FakeData": _WHOLE,
}


def only_images(task: Task, data: DataSpec) -> None:
    """Check that a source of images is used for images, and without names of splits.

    Raises:
        DataError: where it is not.
    """
    if not reads_images(task):
        raise DataError(f"data.source {data.source} holds images, but the task is {task}.")
    for setting in ("train", "validation", "test"):
        if (name := getattr(data, setting)) is not None:
            raise DataError(
                f"data.{setting} is {name!r}, but the splits of {data.source} are fixed. "
                "Leave it out."
            )


class LazyImages(Sequence[Any]):
    """The images of a torchvision data set, decoded when asked for."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        return self._dataset[index][0]


class Torchvision:
    """A `Source` of one of torchvision's classification sets, kept below the cache folder."""

    def __init__(self, name: str, task: Task, data: DataSpec, cache: Path) -> None:
        """Check the name; nothing is imported or downloaded yet."""
        only_images(task, data)
        if name not in TORCHVISION:
            raise DataError(
                f"data.source: torchvision has no classification set '{name}'"
                f"{did_you_mean(name, TORCHVISION) or '.'} Known: {listed(TORCHVISION, 40)}."
            )
        self._name, self._subset = name, data.subset
        self._splits = TORCHVISION[name]
        self._root = cache / "torchvision" / name

    def has(self, split: SplitName, *, ask: bool = True) -> bool:
        """Tell whether the set has such a split."""
        return split in self._splits

    def known_labels(self, split: SplitName) -> list[str] | None:
        """Return None: torchvision knows them after loading only."""
        return None

    def identity(self, split: SplitName) -> str:
        """Return a digest of the files of the set, which are downloaded if they are absent."""
        if not self._root.is_dir():
            self._load(split)
        arguments = repr((self._name, self._subset, self._splits[split]))
        return digest(arguments, version("torchvision"), folder_identity(self._root))

    def read(self, split: SplitName) -> Examples:
        """Load the set, downloading it where it is absent."""
        dataset = self._load(split)
        labels = _targets(dataset)
        names = getattr(dataset, "classes", None)
        if isinstance(names, list | tuple) and all(isinstance(n, str) for n in names):
            labels = [names[label] for label in labels]
        place = item_place(f"torchvision:{self._name}, {split} split")
        return Examples(LazyImages(dataset), labels, place)

    def _load(self, split: SplitName) -> Any:
        from torchvision import datasets

        make = getattr(datasets, self._name)
        parameters = inspect.signature(make).parameters
        arguments = dict(self._splits[split])
        if self._name == "EMNIST":
            arguments["split"] = self._subset or "balanced"
        if "root" not in parameters:
            return make(**arguments)
        with writing(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
        with FileLock(self._root.with_suffix(".lock"), poll_interval=0.1):
            try:
                return make(self._root, **arguments)
            except (RuntimeError, OSError, ValueError) as absent:
                if "download" not in parameters:
                    raise self._failure(absent) from absent
            try:
                return make(self._root, download=True, **arguments)
            except (RuntimeError, OSError, ValueError, ImportError) as error:
                raise self._failure(error) from error

    def _failure(self, error: Exception) -> DataError:
        return DataError(
            f"torchvision:{self._name} is not in {self._root}, and downloading it failed "
            f"({reason(error)}). Connect to the network and try again, or put the set's files "
            "there as torchvision lays them out."
        )


def _targets(dataset: Any) -> list[Any]:
    """Return the labels, without decoding an image where the set keeps them apart."""
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(dataset, attribute, None)
        # QMNIST keeps eight facts an image there; its own items give the label alone.
        if values is not None and len(values) == len(dataset) and getattr(values, "ndim", 1) == 1:
            return values.tolist() if hasattr(values, "tolist") else list(values)
    return [dataset[i][1] for i in range(len(dataset))]


class Digits:
    """A `Source` of scikit-learn's 1,797 handwritten digits of 8 x 8 grey pixels."""

    def __init__(self, name: str, task: Task, data: DataSpec, cache: Path) -> None:
        """Check the name."""
        only_images(task, data)
        if name != "digits":
            raise DataError(
                f"data.source: sklearn has no images called '{name}'. Use sklearn:digits."
            )

    def has(self, split: SplitName, *, ask: bool = True) -> bool:
        """Tell that there is no split but the whole."""
        return split == "train"

    def known_labels(self, split: SplitName) -> list[str] | None:
        """Return the ten digits."""
        return [str(digit) for digit in range(10)]

    def identity(self, split: SplitName) -> str:
        """Return a digest of the library's version: the digits come with it."""
        return digest("digits", version("scikit-learn"))

    def read(self, split: SplitName) -> Examples:
        """Return the digits, their 17 levels of grey spread over 0..255."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
        return Examples(list(pixels), bunch.target.tolist(), item_place("sklearn:digits"))
