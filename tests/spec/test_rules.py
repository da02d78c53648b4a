from __future__ import annotations

from collections.abc import Callable

from sft_tune.spec.findings import Findings
from sft_tune.spec.rules import combinations, known_combinations
from sft_tune.spec.study import StudySpec

Parse = Callable[..., StudySpec]


def test_combinations_honour_conditions_and_fixed_values(parse: Parse) -> None:
    spec = parse(
        space={
            "schedule": ["linear", "exponential"],
            "decay_factor": {"values": [0.5, 0.7], "when": {"schedule": "exponential"}},
            "optimizer": ["adamw", "sgd"],
            "momentum": {"low": 0.5, "high": 0.8, "when": {"optimizer": "sgd"}},
        }
    )
    pairs = {
        (c["schedule"], c["decay_factor"]) for c in combinations(spec, ["schedule", "decay_factor"])
    }
    assert pairs == {("linear", 0.9), ("exponential", 0.5), ("exponential", 0.7)}
    assert {c["momentum"] for c in combinations(spec, ["momentum"])} == {0.5, 0.8, 0.9}
    assert list(combinations(spec, ["freeze"])) == [{"freeze": "none"}]


def test_combinations_hold_a_condition_on_the_inside_of_a_range(parse: Parse) -> None:
    spec = parse(
        space={
            "epochs": {"low": 1, "high": 9},
            "warmup": {"values": [0.3], "when": {"epochs": 5}},
        }
    )
    found = {(c["epochs"], c["warmup"]) for c in combinations(spec, ["epochs", "warmup"])}
    assert found == {(1, 0.1), (5, 0.3), (9, 0.1)}


def test_values_are_known_unless_one_has_a_problem(parse: Parse) -> None:
    spec, findings = parse(space={"optimizer": ["adamw", "sgd"]}), Findings({})
    cells = [{"optimizer": "adamw", "warmup": 0.1}, {"optimizer": "sgd", "warmup": 0.1}]
    assert list(known_combinations(spec, findings, "optimizer", "warmup")) == cells
    findings.add(("space", "optimizer"), "is wrong")
    assert list(known_combinations(spec, findings, "optimizer", "warmup")) == []
    assert list(known_combinations(spec, findings, "warmup")) == [{"warmup": 0.1}]
