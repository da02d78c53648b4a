"""Words with tags: alignment to word pieces, padding, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data import Prepared, gather, prepare
from sft_tune.trial.data.arrays import UNTAGGED

ROWS = [
    {"tokens": ["good", "films", "bad"], "ner_tags": ["B-PER", "I-PER", "O"]},
    {"tokens": ["films"], "ner_tags": ["B-LOC"]},
] * 8


@pytest.fixture
def model(tmp_path: Path, make: Any) -> ModelSpec:
    """A tokenizer that takes "films" for two pieces: film ##s."""
    from transformers import BertTokenizer

    folder = make.tokenizer(tmp_path / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return ModelSpec(name=f"transformers:{folder}")


def prepared(
    rows: list[dict[str, Any]], model: ModelSpec, make: Any, folder: Path, **data: Any
) -> Prepared:
    source = make.jsonl(folder / "rows.jsonl", rows)
    spec = DataSpec(source=str(source), validation_fraction=0.25, **data)
    return prepare("token-classification", spec, model, cache=folder / "cache")


def test_the_first_piece_of_a_word_has_its_tag(model: ModelSpec, make: Any, tmp_path: Path) -> None:
    data = prepared(ROWS, model, make, tmp_path)
    assert data.labels == ("O", "B-LOC", "B-PER", "I-PER")
    tags = np.split(data.train.tags, data.train.offsets[1:-1])
    rows = {
        tuple(ids): tuple(t.tolist()) for ids, t in zip(make.texts(data.train), tags, strict=True)
    }
    no = UNTAGGED
    assert rows == {
        (2, 5, 7, 8, 6, 3): (no, 2, 3, no, 0, no),
        (2, 7, 8, 3): (no, 1, no, no),
    }
    counts = data.facts["class_counts"]
    assert counts["train"]["B-PER"] + counts["validation"]["B-PER"] == 8
    assert counts["train"]["O"] == counts["train"]["B-PER"]


def test_tags_are_padded_with_what_does_not_count(
    model: ModelSpec, make: Any, tmp_path: Path
) -> None:
    data = prepared(ROWS, model, make, tmp_path)
    batch = gather(data.train, torch.arange(len(data.train)), "cpu")
    assert batch.targets.shape == batch.inputs["input_ids"].shape
    assert (batch.targets[batch.inputs["attention_mask"] == 0] == UNTAGGED).all()
    counted = (batch.targets != UNTAGGED).sum(dim=1)
    assert counted.tolist() == data.train.targets.tolist()


def test_words_beyond_the_limit_are_cut_with_their_tags(
    model: ModelSpec, make: Any, tmp_path: Path
) -> None:
    data = prepared(ROWS, model, make, tmp_path, max_length=4)
    assert set(map(tuple, make.texts(data.train))) == {(2, 5, 7, 3), (2, 7, 8, 3)}
    assert data.facts["tokens"]["train"]["max"] == 6
    assert 0 < data.facts["tokens"]["train"]["share_cut"] < 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ner_tags": ["O", "O"]}, "3 tokens, but 2 tags at .*line 3. Give one tag a word"),
        ({"ner_tags": "O O O"}, "tags must be a list.*data.tags_column"),
        ({"ner_tags": None}, "tags must be a list"),
        ({"ner_tags": ["O", "O", 3]}, "tags must be texts, none missing .got '3'"),
        ({"ner_tags": ["O", "O", "PER"]}, "a tag is O, B-KIND or I-KIND, not PER"),
        ({"tokens": ["good", "", "bad"]}, "tokens must be texts"),
        ({"tokens": []}, "tokens must be a list"),
    ],
)
def test_words_and_tags_that_do_not_go_together_are_told(
    model: ModelSpec, make: Any, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    rows = [dict(r) for r in ROWS]
    rows[2] |= row
    with pytest.raises(DataError, match=message):
        prepared(rows, model, make, tmp_path)


def test_a_split_without_tags_and_a_wrong_column_are_told(
    model: ModelSpec, make: Any, tmp_path: Path
) -> None:
    plain = [{"tokens": ["good"], "ner_tags": ["O"]}] * 8
    with pytest.raises(DataError, match="has no tag but O"):
        prepared(plain, model, make, tmp_path)
    with pytest.raises(DataError, match="no key|no column 'tags'.*data.tags_column"):
        prepared(ROWS, model, make, tmp_path, tags_column="tags")


def test_a_tag_that_train_lacks_is_told(model: ModelSpec, make: Any, tmp_path: Path) -> None:
    make.jsonl(tmp_path / "d/train.jsonl", ROWS)
    make.jsonl(tmp_path / "d/test.jsonl", ROWS)
    make.jsonl(tmp_path / "d/validation.jsonl", [{"tokens": ["bad"], "ner_tags": ["B-ORG"]}])
    spec = DataSpec(source=str(tmp_path / "d"))
    with pytest.raises(DataError, match="labels that train does not have: B-ORG"):
        prepare("token-classification", spec, model, cache=tmp_path / "cache")
