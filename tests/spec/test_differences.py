from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sft_tune.spec.load import differences
from sft_tune.spec.study import StudySpec

Parse = Callable[..., StudySpec]

NEVER: list[tuple[dict[str, Any], str]] = [
    ({"name": "other"}, "name: 'base' -> 'other'"),
    ({"data": {"train_limit": 5}}, "data.train_limit: null -> 5"),
    ({"data": {"classes": [1, 2]}}, "data.classes: null -> [1, 2]"),
    ({"model": {"dropout": 0.1}}, "model.dropout: null -> 0.1"),
    ({"training": {"batch_size": 64}}, "training.batch_size: 32 -> 64"),
    ({"objective": {"metric": "f1_macro"}}, "objective.metric: 'accuracy' -> 'f1_macro'"),
    ({"objective": {"rungs": 5}}, "objective.rungs: 'auto' -> 5"),
]
ON_REQUEST: list[tuple[dict[str, Any], str]] = [
    ({"seed": 3}, "seed: 0 -> 3"),
    ({"sampler": {"name": "random"}}, "sampler.name: 'tpe' -> 'random'"),
    ({"pruner": {"name": "none"}}, "pruner.name: 'asha' -> 'none'"),
    (
        {"sampler": {"enqueue": [{"learning_rate": 1e-3}]}},
        "sampler.enqueue: [] -> [{learning_rate: 0.001}]",
    ),
    # always searched: the fixed value only said what trial 0 was
    ({"training": {"learning_rate": 1e-3}}, "training.learning_rate: 0.0001 -> 0.001"),
]
FREE: list[dict[str, Any]] = [
    {"budget": {"trials": 99, "hours": 2, "target": 0.9}},
    {"resources": {"devices": "cpu", "keep_checkpoints": 1}},
    {"storage": {"url": "postgresql://me:secret@h/d", "artifacts": "x"}},
]
LR = {"low": 1e-4, "high": 1e-2, "log": True}


def lr(**changes: Any) -> dict[str, Any]:
    return {"learning_rate": {**LR, **changes}}


@pytest.mark.parametrize(("changes", "line"), NEVER)
def test_what_makes_trials_incomparable_may_never_change(
    parse: Parse, changes: dict[str, Any], line: str
) -> None:
    assert differences(parse(), parse(**changes)) == ([line], [])


@pytest.mark.parametrize(("changes", "line"), ON_REQUEST)
def test_how_the_search_goes_on_may_change_on_request(
    parse: Parse, changes: dict[str, Any], line: str
) -> None:
    assert differences(parse(), parse(**changes)) == ([], [line])


@pytest.mark.parametrize("changes", FREE)
def test_budget_and_machine_may_change_freely(parse: Parse, changes: dict[str, Any]) -> None:
    assert differences(parse(), parse(**changes)) == ([], [])


def test_equal_studies_do_not_differ_however_they_are_written(parse: Parse) -> None:
    assert differences(parse(), parse(training={"epochs": 3}, objective=None)) == ([], [])


@pytest.mark.parametrize(
    ("old", "new", "grew"),
    [
        ({}, {"epochs": [1, 3]}, True),  # 3 is what it was
        ({}, {"epochs": [1, 2]}, False),
        ({}, {"epochs": {"low": 1, "high": 9}}, True),
        ({"epochs": [1, 3]}, {}, False),
        ({"epochs": [1, 3]}, {"epochs": [1, 3, 5]}, False),  # choices are stored by their place
        ({"epochs": [1, 3]}, {"epochs": [3, 1]}, False),
        ({"epochs": [1, 3]}, {"epochs": {"low": 1, "high": 3}}, False),
        ({"epochs": {"low": 2, "high": 4}}, {"epochs": {"low": 1, "high": 9}}, True),
        ({"epochs": {"low": 2, "high": 4}}, {"epochs": {"low": 3, "high": 9}}, False),
        ({"epochs": {"low": 2, "high": 4}}, {"epochs": {"low": 2, "high": 4, "step": 1}}, True),
        ({"epochs": {"low": 2, "high": 4}}, {"epochs": {"low": 2, "high": 4, "step": 2}}, False),
        (
            {"epochs": {"low": 4, "high": 8, "step": 2}},
            {"epochs": {"low": 2, "high": 10, "step": 1}},
            True,
        ),
        (
            {"epochs": {"low": 4, "high": 8, "step": 4}},
            {"epochs": {"low": 2, "high": 10, "step": 2}},
            True,
        ),
        (
            {"epochs": {"low": 4, "high": 8, "step": 2}},
            {"epochs": {"low": 3, "high": 11, "step": 2}},
            False,
        ),
        (
            {"epochs": {"low": 4, "high": 10, "step": 3}},
            {"epochs": {"low": 2, "high": 12, "step": 2}},
            False,
        ),
        (
            {"epochs": {"low": 4, "high": 4, "step": 2}},
            {"epochs": {"low": 2, "high": 11, "step": 2}},
            True,
        ),
        (lr(), lr(low=1e-5), True),
        (lr(), lr(log=False), False),
        (lr(), lr(points=4), True),
    ],
)
def test_a_space_may_only_grow(
    parse: Parse, old: dict[str, Any], new: dict[str, Any], grew: bool
) -> None:
    fixed = {"optimizer": ["adamw", "sgd"]}
    before, after = parse(space={**fixed, **old}), parse(space={**fixed, **new})
    never, on_request = differences(before, after)
    assert (len(never), len(on_request)) == ((0, 1) if grew else (1, 0))


def test_a_condition_may_not_change(parse: Parse) -> None:
    def spec(momentum: float, when: dict[str, Any] | None) -> StudySpec:
        parameter = {"low": 0.5, "high": 0.9, "when": when}
        space = {"momentum": parameter, "optimizer": ["sgd", "adamw"]}
        return parse(space=space, training={"momentum": momentum})

    never, on_request = differences(spec(0.9, None), spec(0.8, {"optimizer": "sgd"}))
    assert on_request == []
    assert never == [
        "training.momentum: 0.9 -> 0.8",
        "space.momentum: {low: 0.5, high: 0.9} -> "
        "{low: 0.5, high: 0.9, when: {optimizer: ['sgd']}}",
    ]


def test_a_fixed_value_that_a_condition_falls_back_to_may_not_change(parse: Parse) -> None:
    space = {
        "optimizer": ["sgd", "adamw"],
        "warmup": {"values": [0.0, 0.2], "when": {"optimizer": "sgd"}},
    }
    before, after = parse(space=space), parse(space=space, training={"warmup": 0.2})
    assert differences(before, after) == (["training.warmup: 0.1 -> 0.2"], [])


def test_a_setting_that_moves_into_the_space_is_told_with_what_it_was(parse: Parse) -> None:
    assert differences(parse(), parse(space={"epochs": [1, 3]})) == (
        [],
        ["space.epochs: 3 (fixed) -> [1, 3]"],
    )
    assert differences(parse(space={"epochs": [1, 3]}), parse())[0] == [
        "space.epochs: [1, 3] -> 3 (fixed)"
    ]
