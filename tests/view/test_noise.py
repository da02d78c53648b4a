from __future__ import annotations

import pytest

from sft_tune.view.noise import interval, is_noise, measured


@pytest.mark.parametrize(
    ("share", "examples", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0.0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
        (1.0, 20, 0.8389, 1.0),
    ],
)
def test_the_interval_is_wilsons(share: float, examples: int, low: float, high: float) -> None:
    assert interval(share, examples) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("value", "other", "examples", "noise"),
    [
        (0.81, 0.80, 100, True),
        (0.81, 0.80, 100_000, False),
        (0.80, 0.81, 100_000, False),
        (1.0, 0.99, 100, True),  # one example
        (1.0, 0.0, 5, False),
        (1.0, 1.0, 5, True),
        # 1.96 standard deviations of the difference are 0.0971.
        (0.5970, 0.5, 200, True),
        (0.5972, 0.5, 200, False),
    ],
)
def test_a_difference_is_noise_within_two_standard_deviations(
    value: float, other: float, examples: int, noise: bool
) -> None:
    assert is_noise("accuracy", value, other, examples) is noise
    assert not is_noise("f1_macro", value, other, examples)


def test_only_of_proportions_an_interval_is_told() -> None:
    assert measured("loss", 0.5, 1) == "measured on 1 validation example"
    assert measured("f1_micro", 1.0, 20) == (
        "measured on 20 validation examples: 0.8389 to 1.0000 with 95 % confidence"
    )
