from __future__ import annotations

import math

import numpy as np
import pytest

from sft_tune.errors import DataError
from sft_tune.trial.data.labels import in_label_order, label_name


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("cat", "cat"),
        (3, "3"),
        (3.0, "3"),
        (True, "true"),
        (np.int64(7), "7"),
        (np.bool_(False), "false"),
        (np.array(2), "2"),
        ("nan", "nan"),
        (None, None),
        ("", None),
        ("  ", None),
        (math.nan, None),
        (np.float32("nan"), None),
    ],
)
def test_a_label_is_called_as_it_is_written(raw, name):
    assert label_name(raw) == name


@pytest.mark.parametrize("raw", [0.5, math.inf, [1], {"a": 1}, b"cat", (1, 2)])
def test_what_is_no_class_label_is_refused(raw):
    with pytest.raises(TypeError):
        label_name(raw)


def test_integers_are_in_the_order_of_their_values():
    assert in_label_order(["10", "9", "-1", "2", "2"]) == ("-1", "2", "9", "10")
    assert in_label_order(["10", "9", "b", "a"]) == ("10", "9", "a", "b")


def jsonl(make, path, labels):
    return make.jsonl(path, [{"text": "film", "label": label} for label in labels])


def test_labels_of_all_kinds_become_indices(prepare_texts, make, tmp_path):
    path = jsonl(make, tmp_path / "x.jsonl", [10, 9, True, 10, 9, True])
    data = prepare_texts(path, validation_fraction=0.5)
    assert data.labels == ("10", "9", "true")
    assert data.facts["class_counts"] == {
        "train": {"10": 1, "9": 1, "true": 1},
        "validation": {"10": 1, "9": 1, "true": 1},
    }


def test_labels_that_train_lacks_are_listed(prepare_texts, make, tmp_path):
    jsonl(make, tmp_path / "train.jsonl", "abab")
    jsonl(make, tmp_path / "validation.jsonl", "abcd")
    with pytest.raises(DataError, match=r"the validation split .*not have: c, d\. Train has a, b"):
        prepare_texts(tmp_path)
    jsonl(make, tmp_path / "validation.jsonl", "abab")
    jsonl(make, tmp_path / "test.jsonl", "abq")
    prepare_texts(tmp_path)
    with pytest.raises(DataError, match=r"the test split .*not have: q"):
        prepare_texts(tmp_path, with_test=True)


def test_only_the_chosen_classes_are_kept(prepare_texts, make, tmp_path):
    jsonl(make, tmp_path / "train.jsonl", [1, 2, 3, 1, 2, 3])
    jsonl(make, tmp_path / "validation.jsonl", [1, 2, 3, 4])
    data = prepare_texts(tmp_path, classes=(3, "1"))
    assert data.labels == ("1", "3")
    assert data.facts["examples"] == {"train": 4, "validation": 2, "test": None}
    with pytest.raises(DataError, match=r"data\.classes names 7, which .*Its labels: 1, 2, 3"):
        prepare_texts(tmp_path, classes=(1, 7))


def test_limits_are_stratified(prepare_texts, make, tmp_path):
    path = jsonl(make, tmp_path / "x.jsonl", "aaab" * 20)
    data = prepare_texts(path, train_limit=16, validation_limit=8)
    counts = data.facts["class_counts"]
    assert counts == {"train": {"a": 12, "b": 4}, "validation": {"a": 6, "b": 2}}


def test_a_label_column_of_which_no_value_is_there_twice_is_told(prepare_texts, make, tmp_path):
    path = jsonl(make, tmp_path / "x.jsonl", "abcdef")
    with pytest.raises(DataError, match=r"No label is there twice.* data\.label_column"):
        prepare_texts(path)


def test_a_limit_below_the_number_of_classes_is_an_error(prepare_texts, make, tmp_path):
    path = jsonl(make, tmp_path / "x.jsonl", "abc" * 10)
    with pytest.raises(DataError, match=r"without examples of b, c: data\.train_limit keeps 1"):
        prepare_texts(path, train_limit=1)
    with pytest.raises(DataError, match="the validation split .* one class only"):
        prepare_texts(path, validation_limit=1)
