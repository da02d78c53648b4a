"""Prompts with completions, and chats: what is learnt, what is cut, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_tune.errors import DataError, ModelError, SftTuneError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data import Prepared, TextSplit, prepare
from sft_tune.trial.data.arrays import UNTAGGED
from sft_tune.trial.data.packing import packed
from sft_tune.trial.data.text import load_tokenizer
from tests.trial.writers import TEMPLATE, TURN, write_model

ROWS = [{"prompt": "one two =", "completion": "a b"}, {"prompt": "three =", "completion": "c"}] * 4
CHAT = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "a b"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "c"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gpt2"), "gpt2", template=TEMPLATE)


def prepared(folder: Path, rows: list[Any], tmp_path: Path, **data: Any) -> Prepared:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DataSpec(source=str(source), **{"validation_fraction": 0.25, **data})
    model = ModelSpec(name=f"transformers:{folder}")
    return prepare("causal-lm", spec, model, cache=tmp_path / "cache")


def shown(folder: Path, split: Any) -> set[tuple[str, str]]:
    """Return what is read of each row, and what is learnt after it (- for nothing)."""
    assert isinstance(split, TextSplit) and split.tags is not None
    tokenizer = load_tokenizer(folder)
    rows = set()
    for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True):
        tags = [
            "-" if tag == UNTAGGED else tokenizer.convert_ids_to_tokens(int(tag))
            for tag in split.tags[a:b]
        ]
        read = tokenizer.convert_ids_to_tokens(split.tokens[a:b].tolist())
        rows.add((" ".join(read), " ".join(tags)))
    return rows


def test_only_the_completion_and_its_end_are_learnt(folder: Path, tmp_path: Path) -> None:
    data = prepared(folder, ROWS, tmp_path)
    expected = {("one two = a b", "- - a b </s>"), ("three = c", "- c </s>")}
    assert shown(folder, data.train) == expected == shown(folder, data.validation)
    assert data.labels == () and data.facts["class_counts"]["train"] == {}
    assert data.facts["tokens"]["train"]["max"] == 6


def test_a_prompt_loses_its_beginning_and_a_completion_its_end(
    folder: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "one two three =", "completion": "a b"}] * 4
    rows += [{"prompt": "one =", "completion": "a b c d e"}] * 4
    data = prepared(folder, rows, tmp_path, max_length=4, validation_fraction=0.5)
    assert shown(folder, data.train) | shown(folder, data.validation) == {
        ("= a b", "a b </s>"),
        ("= a b", "a b c"),
    }
    assert data.facts["tokens"]["train"]["share_cut"] == 1
    begun = write_model(tmp_path / "begun", "gpt2", bos_token="five")
    tokenizer = json.loads((begun / "tokenizer.json").read_text())
    ids = {"five": {"id": "five", "ids": [11], "tokens": ["five"]}}
    pieces = [
        {"SpecialToken": {"id": "five", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": ids
    }  # fmt: skip
    (begun / "tokenizer.json").write_text(json.dumps(tokenizer))
    data = prepared(begun, rows[:4], tmp_path, max_length=5)
    assert shown(begun, data.train) == {("five = a b", "- a b </s>")}


MARKED = TEMPLATE.replace(
    TURN,
    "{% if message['role'] == 'assistant' %}assistant : {% generation %}{{ message['content'] }} "
    "</s>\n{% endgeneration %}{% else %}" + TURN + "{% endif %}",
)


@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["plain", "marked"])
def test_only_what_the_assistant_says_is_learnt(template: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "gpt2", template=template)
    rows = [{"messages": CHAT}, {"messages": CHAT[:2]}] * 4
    data = prepared(folder, rows, tmp_path, messages_column="messages")
    first = "user : one </s> assistant : a b", "- - - - - a b </s>"
    second = f"{first[0]} </s> user : two </s> assistant : c", f"{first[1]} - - - - - - c </s>"
    assert shown(folder, data.train) == {first, second}


def test_a_tokenizer_without_a_pad_pads_with_its_end(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "gpt2", pad_token=None)
    train = prepared(folder, ROWS, tmp_path).train
    assert isinstance(train, TextSplit) and train.pad_id == 1 and not train.pad_left


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_rows_hold_every_example_once_and_no_two_would_fit_into_one(lengths: list[int]) -> None:
    rows = packed(lengths, 9)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    totals = sorted(sum(lengths[i] for i in row) for row in rows)
    assert totals[-1] <= 9
    assert len(totals) < 2 or totals[0] + totals[1] > 9


def test_a_packed_row_holds_several_examples(folder: Path, tmp_path: Path) -> None:
    data = prepared(folder, ROWS, tmp_path, packing=True, max_length=16)
    train, validation = data.train, data.validation
    assert isinstance(train, TextSplit) and isinstance(validation, TextSplit)
    assert train.segments is not None and validation.segments is None
    assert len(train) < data.facts["examples"]["train"] == 6
    row = train.segments[: train.offsets[1]]
    assert row[0] == 1 and np.diff(row).min() == 0 and row.max() > 1


BAD: list[tuple[list[Any], dict[str, Any], str]] = [
    ([*ROWS, {"prompt": "one", "completion": " "}], {}, r"completions are empty, at .*line 9"),
    ([*ROWS, {"prompt": "", "completion": "a"}], {}, r"prompts are empty, at .*line 9"),
    ([*ROWS, {"prompt": "a", "completion": ["b"]}], {}, r"must be a text, not a list .*line 9"),
    (
        ROWS,
        {"completion_column": "complete"},
        "has no column 'complete'; did you mean 'completion'",
    ),
    ([{"messages": "hello"}] * 4, {}, "must be a list of messages .*line 1"),
    ([{"messages": [*CHAT, {"role": "user"}]}] * 4, {}, "message 5 at .*line 1"),
    ([{"messages": CHAT[:1]}] * 4, {}, "no message has the role `assistant`"),
    ([{"messages": [*CHAT[:1], {"role": "assistant", "content": ""}]}] * 4, {}, "an empty compl"),
    (
        [{"messages": [{"role": "user", "content": "one " * 9}, *CHAT[1:]]}] * 4,
        {"max_length": 8},
        r"nothing is left to learn in 8 tokens, at .*Raise data.max_length \(these have up to 25",
    ),
]


@pytest.mark.parametrize(("rows", "data", "message"), BAD)
def test_what_cannot_be_learnt_is_told_with_its_place(
    rows: list[Any], data: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    if "messages" in rows[0]:
        data = {"messages_column": "messages", **data}
    with pytest.raises(DataError, match=message):
        prepared(folder, rows, tmp_path, **data)


FLAT = "{% for message in messages %}{{ message['content'] }}{% endfor %} {{ messages | length }}"
STRICT = "{% if messages | length > 3 %}{{ raise_exception('too many turns') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "special", "error", "message"),
    [
        (None, {}, ModelError, "has no chat template, which data.messages_column needs"),
        (FLAT, {}, DataError, "otherwise when it goes on"),
        (STRICT, {}, DataError, r"does not take the chat at .*line \d.*too many turns"),
    ],
)
def test_a_template_that_does_not_do_is_told(
    template: str | None,
    special: dict[str, Any],
    error: type[SftTuneError],
    message: str,
    tmp_path: Path,
) -> None:
    folder = write_model(tmp_path / "model", "gpt2", template=template, **special)
    with pytest.raises(error, match=message):
        prepared(folder, [{"messages": CHAT}] * 4, tmp_path, messages_column="messages")


def test_a_tokenizer_that_ends_no_text_is_told(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", "gpt2", eos_token=None)
    with pytest.raises(ModelError, match="no end-of-text token"):
        prepared(folder, ROWS, tmp_path)
