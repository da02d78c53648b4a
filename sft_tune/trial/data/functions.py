"""Sources that are the user's own functions: ``python:module:function`` or ``python:file.py:f``."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.tasks import Task
from sft_tune.trial.data.columns import columns_of
from sft_tune.trial.data.examples import (
    Examples,
    SplitName,
    check_columns,
    did_you_mean,
    digest,
    files_identity,
    item_place,
    place_identity,
)

Read = tuple[list[Any], list[Any]]


class Function:
    """A `Source` of a function that is called with the name of a split.

    It returns pairs (input, label), or dicts with the columns, or one dict of columns, or None
    where it has no such split; the same each time, since the cache is keyed by what it returns.
    """

    def __init__(self, name: str, task: Task, data: DataSpec, cache: Path) -> None:
        """Split the name; nothing is imported yet."""
        self._target, _, self._function = name.rpartition(":")
        if not self._target or not self._function.isidentifier():
            raise DataError(
                f"data.source is '{data.source}'; write python:module:function or "
                "python:/path/file.py:function."
            )
        self._data = data
        self._named = columns_of(task, data)
        self._columns: dict[str, Read | None] = {}

    def has(self, split: SplitName, *, ask: bool = True) -> bool | None:
        """Tell whether the function has ``split``; None where it would have to be called."""
        if split == "test" and not ask:
            return None
        return self._identity(split) is not None

    def known_labels(self, split: SplitName) -> list[str] | None:
        """Return None: the labels come with the examples."""
        return None

    def identity(self, split: SplitName) -> str:
        """Return a digest of what the function returns, called once a process and split."""
        return self._identity(split) or "none"

    def read(self, split: SplitName) -> Examples:
        """Return the examples of ``split``."""
        columns = self._call(split)
        if columns is None:
            raise self._no_split(split)
        return Examples(*columns, item_place(f"{self._data.source}, split '{self._name(split)}'"))

    def _name(self, split: SplitName) -> str:
        return getattr(self._data, split) or split

    def _no_split(self, split: SplitName) -> DataError:
        return DataError(
            f"{self._data.source} returned None for '{self._name(split)}'. Return its examples."
        )

    def _identity(self, split: SplitName) -> str | None:
        file = Path(self._target)
        code = place_identity(file) if file.suffix == ".py" else self._target
        key = (code, self._function, self._name(split), tuple(self._named.wanted.values()))
        found = _seen(key)
        if not found:
            columns = self._call(split)
            found.append(None if columns is None else _columns_digest(columns))
        if found[0] is None and split == "train":
            raise self._no_split(split)
        return found[0]

    def _call(self, split: SplitName) -> Read | None:
        """Call the function, once for each split."""
        name = self._name(split)
        if name not in self._columns:
            function = self._import()
            # Whatever the user's code raises is about the user's data.
            try:
                result = function(name)
                rows = result if result is None or isinstance(result, Mapping) else list(result)
            except Exception as error:
                raise DataError(
                    f"{self._data.source} failed for '{name}': {type(error).__name__}: {error}"
                ) from error
            self._columns[name] = None if rows is None else self._to_columns(rows, name)
        return self._columns[name]

    def _import(self) -> Any:
        try:
            module = import_module(self._target)
        except Exception as error:
            raise DataError(
                f"{self._data.source}: importing {self._target} failed: {type(error).__name__}: "
                f"{error}. Give an importable module, or python:/path/file.py:function."
            ) from error
        function = getattr(module, self._function, None)
        if not callable(function):
            known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise DataError(
                f"{self._data.source}: {self._target} has no function '{self._function}'"
                f"{did_you_mean(self._function, known) or '.'}"
            )
        return function

    def _to_columns(self, rows: Mapping[str, Any] | list[Any], name: str) -> Read:
        """Return the inputs and the labels of what the function returned."""
        where = f"{self._data.source}, split '{name}'"
        named, wanted = self._named, self._named.wanted
        if isinstance(rows, Mapping):
            check_columns(rows, wanted, where)
            first, *others = wanted.values()
            for other in others:
                if len(rows[first]) != len(rows[other]):
                    raise DataError(
                        f"{where}: column '{first}' has {len(rows[first])} values, '{other}' "
                        f"{len(rows[other])}. They must be equally many."
                    )
            return named.input(rows), named.target(rows)
        inputs, labels = [], []
        for i, row in enumerate(rows):
            if isinstance(row, Mapping):
                check_columns(row, wanted, f"{where}, example {i + 1}")
                one = {name: [row[name]] for name in wanted.values()}
                row = (named.input(one)[0], named.target(one)[0])
            if not (isinstance(row, tuple | list) and len(row) == 2):
                raise DataError(
                    f"{where}, example {i + 1} is a {type(row).__name__} ({str(row)[:40]!r}). "
                    "Return pairs (input, label), dicts with the columns, or a dict of columns."
                )
            inputs.append(row[0])
            labels.append(row[1])
        return inputs, labels


@functools.lru_cache(maxsize=64)
def _seen(key: tuple[Any, ...]) -> list[str | None]:
    """Return the digest kept for ``key`` in a list, empty the first time.

    A worker prepares before each trial; the user's function need not run for every one.
    """
    return []


def import_module(target: str) -> ModuleType:
    """Return the module named ``target``, or the one of the file ``target`` (``….py``).

    Raises:
        Exception: whatever importing it raises.
    """
    if not target.endswith(".py"):
        # A console script does not have the working directory on its path; `python -m` has.
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        return importlib.import_module(target)
    path = Path(target).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    name = f"sft_tune_user_{digest(place_identity(path))}"
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, path)
        if specification is None or specification.loader is None:
            raise ImportError(f"{path} is no Python file")
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module  # dataclasses in it look their module up there
        try:
            specification.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _columns_digest(columns: Read) -> str:
    """Return a digest of inputs and labels, of whatever kinds they are."""
    inputs, labels = columns
    # Sounds come with their rate; a mapping's text would leave out most of the samples.
    sounds = [value for value in inputs if isinstance(value, dict) and "array" in value]
    inputs = [*inputs, *(np.asarray(sound["array"]) for sound in sounds)]
    parts = [repr(labels)]
    paths: list[Path] = []
    # What is written of an array is cut; masks are told by their contents.
    shown = (str, bytes, int, float, tuple, list, type(None))
    for value in [*inputs, *(label for label in labels if not isinstance(label, shown))]:
        if isinstance(value, Path):
            paths.append(value)
        elif isinstance(value, np.ndarray):
            parts.append(digest(repr((value.shape, value.dtype)), value.tobytes()))
        elif hasattr(value, "tobytes"):  # a PIL image
            parts.append(digest(repr((value.mode, value.size)), value.tobytes()))
        else:
            parts.append(digest(value if isinstance(value, str | bytes) else repr(value)))
    return digest(*parts, files_identity(paths))
