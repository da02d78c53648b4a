"""Targets other than one class: numbers, sets of labels, and pairs of texts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.tasks import Task
from sft_tune.trial.data import Prepared, prepare

Rows = list[dict[str, Any]]


@pytest.fixture
def prepared(make: Any, tokenizer: Path, cache: Path, tmp_path: Path) -> Callable[..., Prepared]:
    def call(task: Task, rows: Rows, with_test: bool = False, **data: Any) -> Prepared:
        spec = DataSpec(source=str(make.jsonl(tmp_path / "rows.jsonl", rows)), **data)
        model = ModelSpec(name=f"transformers:{tokenizer}")
        return prepare(task, spec, model, cache=cache, with_test=with_test)

    return call


def numbered(n: int = 20) -> Rows:
    return [{"text": "good film", "label": 10.0 + i} for i in range(n)]


def labelled(n: int = 20) -> Rows:
    names = ([], ["a"], ["b"], ["a", "b"])
    return [{"text": "good film", "label": names[i % 4]} for i in range(n)]


def test_numbers_are_standardized_by_train_alone(prepared: Callable[..., Prepared]) -> None:
    data = prepared("text-regression", numbered(), with_test=True, test_fraction=0.25)
    assert data.labels == ("label",) and data.test is not None
    assert data.train.targets.dtype == np.float32
    assert data.train.targets.mean() == pytest.approx(0, abs=1e-6)
    assert data.train.targets.std() == pytest.approx(1, abs=1e-6)
    mean, deviation = data.stats["mean"], data.stats["deviation"]
    splits = (data.train, data.validation, data.test)
    found = sorted(v for split in splits for v in split.targets * deviation + mean)
    assert found == pytest.approx([10.0 + i for i in range(20)], abs=1e-4)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "1 of 20 targets are missing .*line 3"),
        (math.nan, "1 of 20 targets are missing .*line 3"),
        (math.inf, "no finite numbers, at .*line 3"),
        ("high", "must be a number, not 'high' .*line 3.*label_column"),
        (True, "must be a number"),
        ([1.0], "must be a number"),
    ],
)
def test_a_target_that_is_no_number_is_told(
    prepared: Callable[..., Prepared], label: Any, message: str
) -> None:
    rows = numbered()
    rows[2]["label"] = label
    with pytest.raises(DataError, match=message):
        prepared("text-regression", rows)


@pytest.mark.parametrize(
    ("task", "row", "labels"),
    [
        ("text-classification", {"text": "film"}, {"label": ["a", "b"]}),
        ("text-regression", {"text": "film"}, {"label": [1.0, 2.0]}),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_a_limit_that_leaves_too_little_is_what_is_to_be_raised(
    make: Any,
    tokenizer: Path,
    cache: Path,
    tmp_path: Path,
    task: Any,
    row: Any,
    labels: Any,
    own: bool,
) -> None:
    ((column, values),) = labels.items()
    rows = [{**row, column: values[i % len(values)]} for i in range(24)]
    (tmp_path / "set").mkdir()
    make.jsonl(tmp_path / "set" / "train.jsonl", rows)
    if own:
        make.jsonl(tmp_path / "set" / "validation.jsonl", rows)
    spec = DataSpec(source=str(tmp_path / "set"), validation_limit=1)
    model = ModelSpec(name=f"transformers:{tokenizer}")
    with pytest.raises(DataError, match=r"validation split .* Raise data\.validation_limit\."):
        prepare(task, spec, model, cache=cache)


def test_targets_that_are_all_the_same_are_told(prepared: Callable[..., Prepared]) -> None:
    with pytest.raises(DataError, match="all 16 targets are 3, so there is nothing to learn"):
        prepared("text-regression", [{"text": "film", "label": 3}] * 20)


def test_a_wrong_column_is_told(prepared: Callable[..., Prepared]) -> None:
    with pytest.raises(DataError, match="no column 'score'.*data.label_column"):
        prepared("text-regression", numbered(), label_column="score")
    with pytest.raises(DataError, match="no column 'other'.*data.text_pair_column"):
        prepared("text-classification", labelled(), text_pair_column="other", multi_label=True)


def test_sets_of_labels_become_marks(prepared: Callable[..., Prepared]) -> None:
    data = prepared("text-classification", labelled(), multi_label=True, validation_fraction=0.3)
    assert data.labels == ("a", "b")
    marks = np.concatenate([data.train.targets, data.validation.targets])
    assert marks.shape == (20, 2) and marks.sum(axis=0).tolist() == [10, 10]
    counts = data.facts["class_counts"]
    assert counts["train"]["a"] + counts["validation"]["a"] == 10


def test_lists_and_columns_and_separated_names_are_the_same(
    prepared: Callable[..., Prepared],
) -> None:
    lists = prepared("text-classification", labelled(), multi_label=True)
    written = [{**row, "label": " | ".join(row["label"])} for row in labelled()]
    separated = prepared("text-classification", written, multi_label=True)
    marked = [
        {"text": row["text"], **{name: int(name in row["label"]) for name in "ab"}}
        for row in labelled()
    ]
    columns = prepared("text-classification", marked, multi_label=True, label_columns=("a", "b"))
    for other in (separated, columns):
        assert other.labels == lists.labels
        assert np.array_equal(other.train.targets, lists.train.targets)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([1.5], "must be a list of strings or integers, not float"),
        (7, "must be a list of strings"),
        ([None], "a label of the list is missing"),
    ],
)
def test_a_list_of_no_labels_is_told(
    prepared: Callable[..., Prepared], label: Any, message: str
) -> None:
    rows = labelled()
    rows[2]["label"] = label
    with pytest.raises(DataError, match=message):
        prepared("text-classification", rows, multi_label=True)


def test_a_mark_that_is_neither_0_nor_1_is_told(prepared: Callable[..., Prepared]) -> None:
    rows = [{"text": "film", "a": i % 2, "b": 2} for i in range(9)]
    with pytest.raises(DataError, match=r"column 'b' must hold 0 or 1 \(got '2'\)"):
        prepared("text-classification", rows, multi_label=True, label_columns=("a", "b"))


def test_a_label_that_no_training_example_has_is_told(prepared: Callable[..., Prepared]) -> None:
    rows = [{"text": "film", "label": ["a", "b"]} for _ in range(10)]
    with pytest.raises(DataError, match="all 8 examples, or none, have a, b"):
        prepared("text-classification", rows, multi_label=True)


def test_a_label_that_train_lacks_is_told(
    make: Any, tokenizer: Path, cache: Path, tmp_path: Path
) -> None:
    make.jsonl(tmp_path / "d/train.jsonl", labelled())
    make.jsonl(tmp_path / "d/validation.jsonl", [{"text": "film", "label": ["c"]}])
    spec = DataSpec(source=str(tmp_path / "d"), multi_label=True)
    with pytest.raises(DataError, match="labels that train does not have: c"):
        prepare(
            "text-classification",
            spec,
            ModelSpec(name=f"transformers:{tokenizer}"),
            cache=cache,
        )


def test_a_pair_is_tokenized_as_one(make: Any, cache: Path, tmp_path: Path) -> None:
    from transformers import BertTokenizer

    folder = make.tokenizer(tmp_path / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    rows = [
        {"text": "good film", "other": "bad", "label": "x"},
        {"text": "film", "other": "good bad film film", "label": "y"},
    ] * 10
    model = ModelSpec(name=f"transformers:{folder}")
    spec = DataSpec(
        source=str(make.jsonl(tmp_path / "pairs.jsonl", rows)),
        text_pair_column="other",
        max_length=7,
    )
    data = prepare("text-classification", spec, model, cache=cache)
    texts = {tuple(row) for row in make.texts(data.train)}
    # [CLS] good film [SEP] bad [SEP]; of the second pair the longer text is cut.
    assert texts == {(2, 5, 7, 3, 6, 3), (2, 7, 3, 5, 6, 7, 3)}
    assert data.train.token_types is not None
    types = data.train.token_types[data.train.offsets[0] : data.train.offsets[1]].tolist()
    assert types in ([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 1])
    assert data.facts["tokens"]["train"]["share_cut"] == 0.5
    rows[3] = {**rows[3], "other": " "}
    make.jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError, match="1 of 20 texts are empty, at .*line 4"):
        prepare("text-classification", spec, model, cache=cache)
