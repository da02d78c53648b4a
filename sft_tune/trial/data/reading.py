"""From a source to the parts of a data set: read, checked, split, limited."""

from __future__ import annotations

import numpy as np

from sft_tune.errors import DataError
from sft_tune.spec.tasks import TASKS
from sft_tune.trial.data.columns import columns_of
from sft_tune.trial.data.examples import Examples, SplitName
from sft_tune.trial.data.parts import Part
from sft_tune.trial.data.request import Request
from sft_tune.trial.data.splits import Parts, split_train, take_at_most
from sft_tune.trial.data.text import check_texts
from sft_tune.trial.data.unreadable import only_readable


def parts_of_search(request: Request) -> tuple[tuple[str, ...], dict[str, Part], int]:
    """Read train, and validation where the source has it.

    Returns:
        The labels, the parts by split, and how many examples are held out as test.

    Raises:
        DataError: where the data is not what the study file says.
    """
    data, seed = request.data, request.data.split_seed
    whole, labels = _read(request, "train", None)
    rows = _split(request, whole)
    remedy = "Add examples."  # what was read was enough: only a limit can have made it less
    train = whole.take(rows.train)
    if request.own_validation:
        validation, _ = _read(request, "validation", labels)
    else:
        validation = whole.take(rows.validation)
        share = "lower data.folds" if data.folds else "raise data.validation_fraction"
        remedy = f"Add examples, or {share}."
        if len(labels) == len(whole.rows):
            remedy = (
                "No label is there twice: name a column of classes in data.label_column, "
                "or add examples of each."
            )
    train = train.take(take_at_most(train.strata, data.train_limit, seed, "train_limit"))
    request.targets.check_train(train, labels, request.where("train"))
    chosen = take_at_most(validation.strata, data.validation_limit, seed, "validation_limit")
    if len(chosen) < len(validation.rows):
        remedy = "Raise data.validation_limit."
    validation = validation.take(chosen)
    request.targets.check(validation, labels, request.where("validation"), remedy)
    held_out = len(rows.test) if data.test_limit is None else min(len(rows.test), data.test_limit)
    return labels, {"train": train, "validation": validation}, held_out


def part_of_test(request: Request, labels: tuple[str, ...]) -> Part:
    """Read the test split, or what is held out of train for it; ``labels`` are those of train.

    Raises:
        DataError: where the data is not what the study file says.
    """
    if request.own_test:
        part, _ = _read(request, "test", labels)
    else:
        whole, _ = _read(request, "train", None)
        part = whole.take(_split(request, whole).test)
    data = request.data
    part = part.take(take_at_most(part.strata, data.test_limit, data.split_seed, "test_limit"))
    remedy = "Add examples, or raise data.test_limit."
    request.targets.check(part, labels, request.where("test"), remedy)
    return part


def _split(request: Request, whole: Part) -> Parts:
    fraction = 0.0 if request.own_validation else request.data.validation_fraction
    return split_train(
        whole.strata,
        validation_fraction=fraction,
        test_fraction=request.test_fraction,
        seed=request.data.split_seed,
        folds=request.data.folds,
        fold=request.data.fold or 0,
    )


def _read(
    request: Request, split: SplitName, labels: tuple[str, ...] | None
) -> tuple[Part, tuple[str, ...]]:
    """Read a split and its labels; without ``labels``, those found are the data set's."""
    where = request.where(split)
    examples = request.source.read(split)
    chats = request.data.messages_column is not None
    texts = TASKS[request.task].input == "text" and split != "test" and not chats
    settings = tuple(columns_of(request.task, request.data).inputs)
    try:
        part, labels = request.targets.read(examples, request.data, where, labels)
    except DataError as error:
        if texts:  # what is wrong with them is said in the same breath
            _also_texts(examples, where, settings, error)
        raise
    if texts:
        check_texts(examples, part.rows, where, settings)
    if request.data.skip_unreadable:
        part = only_readable(part, request.task)
    return part, labels


def _also_texts(
    examples: Examples, where: str, settings: tuple[str, ...], error: DataError
) -> None:
    """Raise ``error`` together with what is wrong with the texts, if anything is."""
    try:
        check_texts(examples, np.arange(len(examples.inputs)), where, settings)
    except DataError as other:
        raise DataError(f"{error}\n{other}") from error
