"""Sources of Hugging Face's `datasets`: an id of the hub, or a folder in its layout."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.tasks import Task
from sft_tune.trial.data.cache import key_of, open_or_build, prepared_root
from sft_tune.trial.data.columns import columns_of, reads_files
from sft_tune.trial.data.examples import (
    Examples,
    SplitName,
    check_columns,
    did_you_mean,
    digest,
    folder_identity,
    item_place,
    listed,
    reason,
)
from sft_tune.trial.data.folders import SPLIT_NAMES


class Hub:
    """A `Source` of the hub: ``ID`` or ``ID@revision``. No script of a data set is ever run.

    Which splits there are is kept in the cache: importing `datasets` takes a second
    or two, and a worker that finds its arrays prepared has no need of it.
    """

    def __init__(self, name: str, task: Task, data: DataSpec, cache: Path) -> None:
        """Keep the name; nothing is imported or downloaded yet."""
        self._data, self._cache = data, cache
        self._name, _, self._revision = name.partition("@")
        self._files_in_cells = reads_files(task)
        self._columns = columns_of(task, data)
        self._loaded: Any = None
        self._names: list[str] | None = None
        if not self._name:
            raise DataError("data.source: hub: needs the id of a data set, e.g. hub:owner/name.")

    def has(self, split: SplitName, *, ask: bool = True) -> bool:
        """Tell whether the data set has such a split."""
        return self._split_name(split) is not None

    def known_labels(self, split: SplitName) -> list[str] | None:
        """Return None: a set's list of names may hold some that no example has."""
        return None

    def identity(self, split: SplitName) -> str:
        """Return a digest of what is stored on this disk, and of the split's name."""
        return digest(self._stored_identity(), self._split_name(split) or "")

    def read(self, split: SplitName) -> Examples:
        """Read the columns of the split."""
        name = self._split_name(split)
        if name is None:
            raise DataError(f"{self._data.source} has no {split} split.")
        dataset = self._load(name) if _is_slice(name) else self._splits()[name]
        columns = self._columns
        where = f"{self._data.source}, split {name}"
        check_columns(dataset.column_names, columns.wanted, where)
        labels = columns.target({c: _labels(dataset, c) for c in columns.targets.values()})
        if self._files_in_cells:
            inputs: Sequence[Any] = _encoded(dataset, *columns.inputs.values())
        else:
            inputs = columns.input({c: dataset[c][:] for c in columns.inputs.values()})
        return Examples(inputs, labels, item_place(where))

    def _split_name(self, split: SplitName) -> str | None:
        """Return the data set's name for ``split``; None where it has none."""
        there = self._split_names()
        named: str | None = getattr(self._data, split)
        if named is not None:
            if named not in there and not _is_slice(named):
                raise DataError(
                    f"data.{split}: {self._data.source} has no split '{named}'"
                    f"{did_you_mean(named, there) or '.'} It has: {listed(there)}."
                )
            return named
        found = next((name for name in SPLIT_NAMES[split] if name in there), None)
        if found is None and split == "train":
            if len(there) > 1:
                raise DataError(
                    f"{self._data.source} has no split `train` but {listed(there)}. "
                    "Name one in data.train."
                )
            return there[0]
        return found

    def _split_names(self) -> list[str]:
        if self._names is None:
            key = key_of({"hub": self._stored_identity()})
            entry = open_or_build(
                prepared_root(self._cache),
                key,
                lambda folder: {"splits": list(self._splits())},
                about=f"{self._data.source}: names of its splits",
            )
            self._names = entry.meta["splits"]
        return self._names

    def _stored_identity(self) -> str:
        local = Path(self._name).is_dir()
        stored = Path(self._name) if local else _stored_at(self._name)
        if not stored.is_dir():
            self._splits()
        # A folder is the same wherever it lies.
        name = repr((None if local else self._name, self._revision, self._data.subset))
        return digest(name, folder_identity(stored, "" if local else ".arrow"))

    def _splits(self) -> Any:
        """Return all splits, name -> data set (their rows stay on the disk)."""
        if self._loaded is None:
            self._loaded = self._load(None)
        return self._loaded

    def _load(self, split: str | None) -> Any:
        import datasets

        # Any error of this call is about the data set or the way to it, whatever its type.
        try:
            return datasets.load_dataset(
                self._name,
                self._data.subset,
                split=split,
                revision=self._revision or None,
                cache_dir=str(_datasets_cache()),
            )
        except Exception as error:
            subset = f" (subset {self._data.subset})" if self._data.subset else ""
            raise DataError(
                f"{self._data.source}{subset} cannot be loaded: {reason(error)}. Check the id, "
                "data.subset and the network; a set with restricted access needs HF_TOKEN."
            ) from error


class LazyColumn(Sequence[Any]):
    """The images or sounds of a column as encoded bytes or paths, read when asked for."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> Any:
        value = self._column[index]
        if isinstance(value, dict) and "bytes" in value:
            return value["bytes"] or value["path"]
        return value


def _encoded(dataset: Any, column: str) -> LazyColumn:
    import datasets

    for kind in (datasets.Image, datasets.Audio):
        if isinstance(dataset.features[column], kind):
            dataset = dataset.cast_column(column, kind(decode=False))
    return LazyColumn(dataset[column])


def _labels(dataset: Any, column: str) -> list[Any]:
    """Return the labels in ``column``, by their names where the set has names for them."""
    labels: list[Any] = dataset[column][:]
    if names := _label_names(dataset, column):
        # -1 is how sets hide the labels of their test split.
        return [names[v] if v is not None and v >= 0 else None for v in labels]
    return labels


def _label_names(dataset: Any, column: str) -> list[str] | None:
    names = getattr(dataset.features.get(column), "names", None)
    return list(names) if names else None


def _is_slice(name: str) -> bool:
    """Tell whether a split's name is an expression of `datasets`: ``train[:10%]``, ``a+b``."""
    return "[" in name or "+" in name


def _datasets_cache() -> Path:
    """Return where `datasets` keeps what it has loaded, without importing it."""
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    hugging_face = os.environ.get("HF_HOME", os.path.join(home, "huggingface"))
    folder = os.environ.get("HF_DATASETS_CACHE", os.path.join(hugging_face, "datasets"))
    return Path(folder).expanduser()


def _stored_at(name: str) -> Path:
    """Return the folder of a data set in that cache: its name in snake case."""
    *owner, last = name.split("/")
    last = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", last)
    last = re.sub(r"([a-z\d])([A-Z])", r"\1_\2", last).lower()
    return _datasets_cache() / "___".join([*owner, last])
