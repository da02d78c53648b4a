# ruff: noqa: E501  (one row a rule: wrapped, the tables could not be compared by eye)
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_tune.errors import Problem, StudyFileError, UserError
from sft_tune.spec.documents import dotted, parse_text, read_text
from sft_tune.spec.yaml12 import to_yaml, yaml_scalar


def value(text: str) -> Any:
    return parse_text(f"a: {text}\n", ".yaml", "s").data["a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5", 1e-5),
        ("1E4", 1e4),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("-3", -3),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
        (".inf", float("inf")),
        ("on", "on"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("none", "none"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'1e-5'", "1e-5"),
        ("e5", "e5"),
        (".", "."),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, expected: Any) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_not_a_number_is_a_number() -> None:
    assert value(".nan") != value(".nan")


@pytest.mark.parametrize(
    ("text", "suffix", "problem"),
    [
        ("a: [1\nb: 2", ".yaml", Problem("column 2", "is not YAML: expected ',' or ']', but got ':'", None, 2)),
        ("a:\n\t- 1", ".yaml", Problem("column 1", r"is not YAML: found character '\t' that cannot start any token; indent with spaces, not tabs", None, 2)),
        ("a: {b: 1}\n  c: 1", ".yaml", Problem("column 3", "is not YAML: expected <block end>, but found '<block mapping start>'; begin keys that belong together in the same column", None, 2)),
        ("a: b: c", ".yaml", Problem("column 5", "is not YAML: mapping values are not allowed here; put the value in quotes if it contains ': '", None, 1)),
        ("a: 1\n---\nb: 2", ".yaml", Problem("column 1", "is not YAML: but found another document; keep one document a file: remove the second '---'", None, 2)),
        ("a: !!timestamp x", ".yaml", Problem("column 4", "is not YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:timestamp'; remove the tag that begins with '!'", None, 1)),
        ("a: !!float x", ".yaml", Problem("column 4", "is not YAML: 'x' is no valid float", None, 1)),
        ("a: *x", ".yaml", Problem("column 4", "is not YAML: found undefined alias 'x'; define it with '&' first, or put a value that begins with '*' in quotes", None, 1)),
        ("? [1]\n: 2", ".yaml", Problem("column 3", "is not YAML: found unhashable key", None, 1)),
        ('{"a": 1,\n}', ".json", Problem("column 1", "is not JSON: Expecting property name enclosed in double quotes", None, 2)),
        ("a = 1\nb = = 2", ".toml", Problem("column 5", "is not TOML: Invalid value", None, 2)),
        ("a = " + "9" * 5000, ".toml", Problem("text", "holds a number of more digits than a computer converts; shorten it")),
        ('{"a": ' + "9" * 5000 + "}", ".json", Problem("text", "holds a number of more digits than a computer converts; shorten it")),
    ],
)  # fmt: skip
def test_broken_syntax_is_told_with_line_and_column(
    text: str, suffix: str, problem: Problem
) -> None:
    with pytest.raises(StudyFileError) as caught:
        parse_text(text, suffix, "s")
    assert caught.value.problems == [problem]


def test_a_character_that_yaml_forbids_is_told() -> None:
    with pytest.raises(StudyFileError, match="unacceptable character #x0001.*remove the character"):
        parse_text("a: \x01", ".yaml", "s")


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_a_key_given_twice_is_told_with_both_lines(suffix: str) -> None:
    text = '{"a": {"b": 1,\n"c": 2,\n"b": 3}}'
    document = parse_text(text, suffix, "s")
    rule = "the key is given twice (first in line 1); remove one"
    assert document.problems == (Problem("a.b", rule, None, 3),)


def test_merged_keys_may_be_overridden_and_keep_their_lines() -> None:
    text = "base: &base {x: 1, y: 2}\nnext:\n  <<: *base\n  y: 3\n"
    document = parse_text(text, ".yaml", "s")
    assert document.data["next"] == {"x": 1, "y": 3}
    assert document.problems == ()
    assert document.lines[("next", "y")] == 4
    assert document.lines[("next", "x")] == 1


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ("- 1", ".yaml", "a study file is a mapping of sections (name:, task:, data:, ...), but s holds a list"),
        ("just words", ".yaml", "but s holds a single value"),
        ("# nothing", ".yaml", "but s holds nothing but comments"),
        ("[]", ".json", "but s holds a list"),
        ("&a [*a]", ".yaml", "but s holds a list"),
        ("[" * 5000, ".yaml", "s is nested too deeply"),
        ("[" * 100_000, ".json", "s is nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_no_mapping_is_no_study(text: str, suffix: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_text(text, suffix, "s")
    assert message in str(caught.value)


def test_aliases_cannot_make_a_small_text_huge() -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    document = parse_text("\n".join(rows), ".yaml", "s")
    assert len(document.lines) < 300_000


def test_a_missing_file_is_told_with_the_one_that_may_be_meant() -> None:
    Path("quickstart.yaml").write_text("a: 1")
    with pytest.raises(
        UserError, match=r"no such study file: quikstart.yaml; did you mean quickstart.yaml\?"
    ):
        read_text(Path("quikstart.yaml"))
    with pytest.raises(UserError, match="no such study file: no/where.yaml; check the path"):
        read_text(Path("no/where.yaml"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.yaml", b"", "the study file s.yaml is empty; `sft-tune init` writes one to start from"),
        ("s.json", b" \n", "the study file s.json is empty"),
        ("s.yaml", b"a: \xff", "a study file is UTF-8 text, but byte 3 of s.yaml is not; save it as UTF-8"),
        ("s.txt", b"a: 1", "a study file ends in .yaml, .yml, .json, .toml; rename s.txt"),
    ],
)  # fmt: skip
def test_an_unreadable_file_is_told_with_a_remedy(name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_text(Path(name))
    assert message in str(caught.value)


def test_a_folder_is_no_study_file() -> None:
    Path("s.yaml").mkdir()
    with pytest.raises(UserError, match="a study is a file, but s.yaml is a folder"):
        read_text(Path("s.yaml"))


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | texts
    | st.sampled_from(
        ["1e5", "on", "0o7", "010", "1_0", "=", "<<", "~", "null", ".5", "-", "a: b", "#"]
    )
)
trees = st.recursive(scalars, lambda t: st.lists(t) | st.dictionaries(texts, t), max_leaves=8)


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(texts, trees, max_size=4))
def test_what_is_written_as_yaml_reads_back_equal(data: dict[str, Any]) -> None:
    document = parse_text(to_yaml(data) or "{}", ".yaml", "s")
    assert document.data == data
    assert repr(document.data) == repr(data)


def test_equal_lists_are_written_out_without_anchors() -> None:
    same = [1, 2]
    assert to_yaml({"a": same, "b": same}) == "a:\n- 1\n- 2\nb:\n- 1\n- 2\n"


@settings(deadline=None, derandomize=True)
@given(texts)
def test_a_text_on_one_line_reads_back_equal(text: str) -> None:
    line = yaml_scalar(text)
    assert "\n" not in line
    assert parse_text(f"a: {line}  # comment\n", ".yaml", "s").data == {"a": text}


def test_places_are_printed_as_a_reader_would_write_them() -> None:
    assert dotted(("space", "optimizer", 1)) == "space.optimizer[1]"
    assert dotted(()) == "study"
    assert dotted(("a\nb",)) == r"'a\nb'"
