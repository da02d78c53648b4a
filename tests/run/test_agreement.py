from __future__ import annotations

import math

import pytest

from sft_tune.run.agreement import disagreements

RECORDED = {"loss": 0.5, "accuracy": 0.9}


@pytest.mark.parametrize(
    ("measured", "reduced", "found"),
    [
        (RECORDED, False, []),
        ({"loss": 0.50005, "accuracy": 0.9}, False, []),
        ({"loss": 0.5002, "accuracy": 0.9}, False, ["loss 0.5002, recorded 0.5"]),
        ({"loss": 0.5002, "accuracy": 0.9}, True, []),
        ({"loss": 0.55, "accuracy": 0.9}, True, ["loss 0.55, recorded 0.5"]),
        # Two of 100 examples on the border, and three.
        ({"loss": 0.5, "accuracy": 0.88}, False, []),
        ({"loss": 0.5, "accuracy": 0.87}, False, ["accuracy 0.87, recorded 0.9"]),
        ({"loss": math.nan, "accuracy": 0.9}, False, ["loss nan, recorded 0.5"]),
        ({"loss": 0.5}, False, ["accuracy nan, recorded 0.9"]),
        ({**RECORDED, "f1_macro": 0.1}, False, []),
    ],
)
def test_only_rounding_is_agreed_to(
    measured: dict[str, float], reduced: bool, found: list[str]
) -> None:
    assert disagreements(measured, RECORDED, examples=100, reduced=reduced) == found


def test_the_loss_is_compared_relative_to_its_size() -> None:
    assert disagreements({"loss": 100.005}, {"loss": 100.0}, examples=9, reduced=False) == []
    assert disagreements({"loss": 100.02}, {"loss": 100.0}, examples=9, reduced=False)
