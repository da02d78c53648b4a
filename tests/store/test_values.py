from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_tune.store.values import (
    dumps,
    join_float,
    load_numbers,
    loads,
    plain_text,
    split_floats,
    utc,
)

plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False)
json_like = st.recursive(
    plain | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return a == b or (math.isnan(a) and math.isnan(b))


@given(st.dictionaries(st.text(max_size=5), st.floats()))
def test_numbers_of_every_kind_come_back_from_json(numbers: dict[str, float]) -> None:
    text = dumps(numbers)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    back = load_numbers(text)
    assert back.keys() == numbers.keys()
    assert all(same(back[name], numbers[name]) for name in numbers)


@given(json_like)
def test_json_is_strict_whatever_it_holds(value: object) -> None:
    json.loads(dumps(value), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_non_finite_floats_deep_in_json_become_strings() -> None:
    assert loads(dumps({"a": [math.nan, (math.inf,)], "b": -math.inf})) == {
        "a": ["NaN", ["Infinity"]],
        "b": "-Infinity",
    }


@given(st.dictionaries(st.sampled_from("abc"), st.none() | st.floats()))
def test_floats_of_every_kind_come_back_from_columns(floats: dict[str, float | None]) -> None:
    columns = split_floats(floats)
    for name, value in floats.items():
        assert columns[name] is None or math.isfinite(columns[name])
        assert same(join_float(columns[name], columns["non_finite"], name), value)


def test_a_row_of_numbers_needs_no_kinds() -> None:
    assert split_floats({"a": 1.5, "b": None}) == {"a": 1.5, "b": None, "non_finite": None}


@given(st.text(alphabet=st.characters(), max_size=50))
def test_text_is_made_storable(text: str) -> None:
    clean = plain_text(text)
    clean.encode("utf-8")
    assert "\x00" not in clean
    assert len(clean) == len(text)


def test_of_a_long_text_the_end_is_kept() -> None:
    assert plain_text("abcdefgh", longest=3) == "...fgh"


def test_times_are_naive_utc() -> None:
    assert utc(0.25).isoformat() == "1970-01-01T00:00:00.250000"
