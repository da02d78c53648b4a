"""Labels: from what a source holds to class indices, with every doubtful one named."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_tune.errors import DataError
from sft_tune.trial.data.examples import Examples, did_you_mean, listed

Indices = NDArray[np.int64]


def label_name(raw: Any) -> str | None:
    """Return the name of a label as written: ``3`` and ``3.0`` are "3", True is "true".

    Returns:
        The name, or None where the label is missing (None, NaN, an empty string).

    Raises:
        TypeError: for a value that is no class label (a fraction, a list, ...).
    """
    if isinstance(raw, str):
        return raw if raw.strip() else None
    if hasattr(raw, "item") and getattr(raw, "ndim", None) == 0:
        raw = raw.item()
    if raw is None:
        return None
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, int | str):
        return str(raw)
    if isinstance(raw, float):
        if math.isnan(raw):
            return None
        # Whole floats are integers that went through a table with gaps.
        if raw.is_integer():
            return str(int(raw))
    raise TypeError(type(raw).__name__)


def name_labels(examples: Examples, where: str) -> list[str]:
    """Return the names of all labels of ``examples``.

    Args:
        examples: a split.
        where: what the split is called in messages.

    Raises:
        DataError: where labels are missing or no class labels, with the places.
    """
    names: list[str] = []
    missing: list[int] = []
    for i, raw in enumerate(examples.labels):
        try:
            name = label_name(raw)
        except TypeError as error:
            raise DataError(
                f"{where}: a label must be a string, an integer or a bool, not {error} "
                f"({str(raw)[:60]!r} at {examples.place(i)}). Name the right data.label_column."
            ) from None
        if name is None:
            missing.append(i)
        names.append(name or "")
    if missing:
        places = listed((examples.place(i) for i in missing[:5]), limit=5)
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise DataError(
            f"{where}: {len(missing)} of {len(names)} labels are missing, at {places}{more}. "
            "Fill them in, or remove these examples."
        )
    return names


def in_label_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return distinct labels sorted: by value where all are integers, else as strings."""
    distinct = set(names)
    try:
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(distinct))


def keep_classes(names: Sequence[str], classes: Sequence[str | int] | None, where: str) -> Indices:
    """Return the rows of ``names`` whose label is one of ``classes`` (all when it is None).

    Raises:
        DataError: for a class that no row has.
    """
    if classes is None:
        return np.arange(len(names))
    wanted = {str(label) for label in classes}
    known = set(names)
    if absent := in_label_order(wanted - known):
        raise DataError(
            f"data.classes names {listed(absent)}, which {where} does not have"
            f"{did_you_mean(absent[0], known)} Its labels: {listed(in_label_order(known))}."
        )
    return np.flatnonzero([name in wanted for name in names])


def class_indices(names: Sequence[str], labels: Sequence[str]) -> Indices:
    """Return the index in ``labels`` of each of ``names`` (all of which must be in it)."""
    index = {label: i for i, label in enumerate(labels)}
    return np.array([index[name] for name in names], dtype=np.int64)


def check_agreement(found: Iterable[str], labels: Sequence[str], where: str) -> None:
    """Check that a split has no label that train lacks.

    Raises:
        DataError: with the labels in question.
    """
    if unknown := in_label_order(set(found) - set(labels)):
        raise DataError(
            f"{where} has labels that train does not have: {listed(unknown)}. Train has "
            f"{listed(labels)}. Mend the labels, or choose with data.classes."
        )


def check_enough(targets: Indices, labels: Sequence[str], where: str, remedy: str) -> None:
    """Check that a split is not empty and holds at least two classes.

    Raises:
        DataError: where it does not.
    """
    if not len(targets):
        raise DataError(f"{where} has no examples. {remedy}")
    present = np.unique(targets)
    if len(present) < 2:
        raise DataError(
            f"{where} has examples of one class only, '{labels[present[0]]}' "
            f"({len(targets)} examples); at least two are needed. {remedy}"
        )


def counts_by_class(targets: Indices, labels: Sequence[str]) -> dict[str, int]:
    """Return the number of examples of each label, zeros included."""
    counts = np.bincount(targets, minlength=len(labels))
    return {label: int(count) for label, count in zip(labels, counts, strict=True)}


def check_all_present(targets: Indices, labels: Sequence[str], where: str) -> None:
    """Check that a limit has left some examples of every class in the training split.

    Raises:
        DataError: with the classes that have none.
    """
    present = set(targets.tolist())
    if absent := [label for i, label in enumerate(labels) if i not in present]:
        raise DataError(
            f"{where} is left without examples of {listed(absent)}: data.train_limit keeps "
            f"{len(targets)} for {len(labels)} classes. Raise it, or choose with data.classes."
        )
