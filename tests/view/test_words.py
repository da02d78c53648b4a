from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_tune.view import words
from sft_tune.view.statistics import t_interval


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (3, "3"),
        (12345678, "12345678"),
        (3.2e-5, "3.2e-05"),
        (0.01, "0.01"),
        (0.123456, "0.1235"),
        (0.30000000000000004, "0.3"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_a_number_has_four_significant_digits(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.89331, "0.8933"),
        (1.0, "1.0000"),
        (0.0, "0.0000"),
        (-0.5, "-0.5000"),
        (0.00002, "2e-05"),
        (123456.0, "1.235e+05"),
        (math.nan, "nan"),
    ],
)
def test_scores_align_in_a_column(value: float | None, text: str) -> None:
    assert words.score(value) == text


def test_no_estimated_chance_is_certain() -> None:
    found = [words.chance(p) for p in (None, 0.0, 0.574, 0.99, 0.9951, 1.0)]
    assert found == ["–", "<1%", "57%", "99%", ">99%", ">99%"]


def test_a_chance_does_not_reach_by_rounding_what_it_has_not() -> None:
    assert [words.chance(p) for p in (0.896, 0.8999, 0.9, 0.57)] == ["89%", "89%", "90%", "57%"]


def test_an_interval_with_an_end_cut_off_is_told_by_its_ends() -> None:
    wide = t_interval([0.9, 0.92])
    assert words.plus_minus(wide) == "0.9100 ± 0.1271"
    assert words.plus_minus(wide.within(0.0, 1.0)) == "0.9100 (0.7829 to 1)"
    assert words.plus_minus(wide.within(0.0, None)) == "0.9100 ± 0.1271"
    assert words.signed(wide.within(-1.0, 1.0)) == "+0.9100 (+0.7829 to +1)"
    assert words.plus_minus(t_interval([0.9])) == "0.9000"


def test_a_gain_shows_its_sign() -> None:
    assert [words.gain(v) for v in (0.0312, -0.002, 0.0, None, 0.00067, -2e-6)] == [
        "+0.0312",
        "-0.0020",
        "+0.0000",
        "–",
        "+0.0007",
        "-2e-06",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (False, "false"), (3e-5, "3e-05"), (8, "8"), ("sgd", "sgd")],
)
def test_a_setting_reads_as_in_the_study_file(value: object, text: str) -> None:
    assert words.setting(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("/home/me/studies/backbone.safetensors", "…/backbone.safetensors"),
        ("transformers:/models/minilm-l6", "transformers:…/minilm-l6"),
        ("transformers:google-bert/bert-base", "transformers:google-bert/bert-base"),
        ("a/b.pt", "a/b.pt"),
    ],
)
def test_of_an_absolute_path_the_last_part_is_shown(value: str, text: str) -> None:
    assert words.setting(value) == text


def test_settings_stand_on_one_line() -> None:
    params = {"learning_rate": 3.2e-5, "schedule": "cosine", "clip_norm": None}
    assert words.settings(params) == "learning_rate=3.2e-05, schedule=cosine, clip_norm=null"
    assert words.settings(params, without=["schedule", "clip_norm"]) == "learning_rate=3.2e-05"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (-0.1, "0.00s"),
        (0.414, "0.41s"),
        (8.24, "8.2s"),
        (9.97, "10s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (83, "1m 23s"),
        (3599.7, "1h 00m"),
        (7500, "2h 05m"),
        (86399, "1d 00h"),
        (100_000, "1d 04h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@given(st.floats(0, 1e8))
def test_a_duration_never_shows_sixty_of_a_unit(seconds: float) -> None:
    assert not {"60s", "60m", "24h"} & set(words.duration(seconds).split())


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (512, "512 B"), (43_100_000, "43.1 MB"), (2.5e12, "2.5 TB"), (5e15, "5000.0 TB")],
)
def test_bytes_have_a_unit(count: float | None, text: str) -> None:
    assert words.size(count) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (812, "812"), (9999, "9999"), (12_345, "12.3k"), (11_181_642, "11.2M")],
)
def test_a_large_amount_is_shortened(count: int | None, text: str) -> None:
    assert words.amount(count) == text


def test_the_ends_of_trials_are_counted_in_words() -> None:
    counts = {"pruned": 7, "completed": 12, "out_of_memory": 1, "crashed": 0}
    assert words.reasons(counts) == "12 completed, 7 pruned, 1 out of memory"


@pytest.mark.parametrize(
    ("values", "width", "text"),
    [
        ([], 5, ""),
        ([0.5], 5, "▅"),
        ([0.5, 0.5], 5, "▅▅"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([9, 0, 7], 2, "▁█"),
        ([0, math.nan, 1], 5, "▁ █"),
        ([math.nan, math.inf], 5, "  "),
        ([1, 2], 0, ""),
    ],
)
def test_a_sparkline_spans_its_values(values: list[float], width: int, text: str) -> None:
    assert words.sparkline(values, width) == text


def test_a_path_is_shown_from_where_the_reader_stands() -> None:
    assert words.short_path(Path.cwd() / "a" / "b") == "a/b"
    assert words.short_path(Path.home() / "x.db", Path("/elsewhere")) == "~/x.db"
    assert words.short_path("/elsewhere/x.db") == "/elsewhere/x.db"


def test_a_moment_is_local_time_to_the_minute() -> None:
    when = datetime(2026, 3, 1, 14, 5, 59, tzinfo=UTC)
    assert words.moment(when) == when.astimezone().strftime("%Y-%m-%d %H:%M")
    assert words.moment(None) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.254, "0.254"), (43.14, "43.1"), (99.96, "100"), (1513.0, "1,510")]
    + [(16_960.0, "17,000"), (1.234e6, "1,230,000")],
)
def test_a_rate_has_no_exponent(value: float, text: str) -> None:
    assert words.rate(value) == text
