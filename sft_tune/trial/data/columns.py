"""Which columns of a table an example's input and its target are read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_tune.spec.data import DataSpec
from sft_tune.spec.tasks import TASKS, Task


@dataclass(frozen=True)
class Columns:
    """The columns of a task, by the settings of the study file that name them.

    Attributes:
        inputs: of the input; of several the input is a tuple.
        targets: of the target; the same holds.
    """

    inputs: dict[str, str]
    targets: dict[str, str]

    @property
    def wanted(self) -> dict[str, str]:
        """All of them, setting -> column."""
        return {**self.inputs, **self.targets}

    def input(self, columns: Mapping[str, Sequence[Any]]) -> list[Any]:
        """Return the inputs in ``columns`` (by their names)."""
        return _joined(columns, self.inputs)

    def target(self, columns: Mapping[str, Sequence[Any]]) -> list[Any]:
        """Return the targets in ``columns`` (by their names)."""
        return _joined(columns, self.targets)


def columns_of(task: Task, data: DataSpec) -> Columns:
    """Return the columns that ``task`` reads; a setting that is None names none."""
    inputs: dict[str, str] = {}
    targets: dict[str, str] = {}
    for key in TASKS[task].columns:
        value = getattr(data, key)
        if value is None or _is_replaced(key, data):
            continue
        if key == "messages_column":
            # What is given and what is learnt stand in one column.
            inputs[key] = value
        found = targets if key in TASKS[task].targets else inputs
        if isinstance(value, str):
            found[key] = value
        else:
            found |= {f"{key}[{i}]": column for i, column in enumerate(value)}
    return Columns(inputs, targets)


def _is_replaced(key: str, data: DataSpec) -> bool:
    """Tell whether another setting of ``data`` names columns in place of ``key``."""
    if key == "label_column":
        return data.label_columns is not None
    return key in ("prompt_column", "completion_column") and data.messages_column is not None


def reads_images(task: Task) -> bool:
    """Tell whether the inputs of ``task`` are images."""
    return TASKS[task].input == "image"


def reads_files(task: Task) -> bool:
    """Tell whether the inputs of ``task`` are files of their own, whose paths a table holds."""
    return TASKS[task].input in ("image", "audio")


def _joined(columns: Mapping[str, Sequence[Any]], named: Mapping[str, str]) -> list[Any]:
    chosen = [columns[name] for name in named.values()]
    return list(chosen[0]) if len(chosen) == 1 else list(zip(*chosen, strict=True))
