# ruff: noqa: E501  (one row a rule: wrapped, the tables could not be compared by eye)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sft_tune.errors import Problem
from sft_tune.spec.study import StudySpec

Parse = Callable[..., StudySpec]
Problems = Callable[..., list[Problem]]

LR = {"low": 1e-4, "high": 1e-2, "log": True}
OUTSIDE = "trial 0 is the default configuration, but this value is outside of the space; choose "
GRID = "a range in a grid needs `points` (how many values) or `step`; add one"

TABLE: list[tuple[dict[str, Any], str, str, str | None]] = [
    # what changes, place, rule with remedy, value shown
    ({"space": {"learning_rte": [1]}}, "space.learning_rte", "unknown setting; did you mean learning_rate?", None),
    ({"space": {"lr": 5}}, "space.lr", "unknown setting; did you mean learning_rate?", None),
    ({"space": {"dropout": [0.1]}}, "space.dropout", "unknown setting; did you mean model.dropout?", None),
    ({"space": {"zzz": [1]}}, "space.zzz", "unknown setting; see `sft-tune schema`", None),
    ({"space": {"training.epochs": [1]}}, "space.training.epochs", "settings of training have no prefix here; write `epochs`", None),
    ({"space": {"model": {"dropout": [0.1]}}}, "space.model", "the space is flat; write keys like `model.dropout: [...]`", None),
    ({"space": {"training": {"epochs": [1]}}}, "space.training", "the space is flat; write keys like `learning_rate: [...]`", None),
    ({"space": {"optimizer": {"low": 1, "high": 2}}}, "space.optimizer", "has no numbers to range over; list its values: [adamw, adam, sgd, adafactor, lion, muon]", "{low: 1, high: 2}"),
    ({"space": {"model.weights": {"low": 1, "high": 2}}}, "space.model.weights", "has no numbers to range over; list its values: [...]", "{low: 1, high: 2}"),
    ({"space": {"optimizer": ["adamw", "sdg"]}}, "space.optimizer[1]", "must be one of adamw, adam, sgd, adafactor, lion, muon; did you mean sgd?", "'sdg'"),
    ({"space": {"optimizer": {"values": ["adamw", "sdg"]}}}, "space.optimizer.values[1]", "must be one of adamw, adam, sgd, adafactor, lion, muon; did you mean sgd?", "'sdg'"),
    ({"space": {"epochs": [2, True]}}, "space.epochs[1]", "must be a whole number", "true"),
    ({"space": {"epochs": [1, True]}}, "space.epochs", "the values of a list must differ; remove the repeated one", "[1, true]"),
    ({"space": {"warmup": [0, 0.0]}}, "space.warmup", "the values of a list must differ; remove the repeated one", "[0, 0]"),
    ({"space": {"warmup": [0, False]}}, "space.warmup", "the values of a list must differ; remove the repeated one", "[0, false]"),
    ({"space": {"warmup": [0.5, "0.1"]}}, "space.warmup[1]", "must be a number; remove the quotes", "'0.1'"),
    ({"space": {"epochs": [None, 3]}}, "space.epochs[0]", "must be a whole number", "null"),
    ({"space": {"epochs": {"low": 1.5, "high": 3}}}, "space.epochs.low", "must be a whole number; round it", "1.5"),
    ({"space": {"epochs": {"low": 1, "high": 3.0}}}, "space.epochs.high", "must be a whole number; write 3 without a point", "3"),
    ({"space": {"epochs": {"low": 0, "high": 3}}}, "space.epochs.low", "must be at least 1 and at most 10000", "0"),
    ({"space": {"epochs": {"low": 1, "high": 9, "step": 0.5}}}, "space.epochs.step", "must be a whole number, as epochs is one", "0.5"),
    ({"space": {"warmup": {"low": 0, "high": 1}}}, "space.warmup.high", "must be at least 0 and below 1", "1"),
    ({"space": {"warmup": {"low": 0, "high": 0.5, "step": 1e-300}}}, "space.warmup.step", "is too small for the range; raise it", "1e-300"),
    ({"space": {"model.dropout": {"low": 0.1, "high": 2}}}, "space.model.dropout.high", "must be at least 0 and below 1", "2"),
    ({"space": {"warmup": {"values": [0.1, 0.2], "when": {"shedule": "linear"}}, "schedule": ["linear", "constant"]}}, "space.warmup.when.shedule", "no such setting in the space; did you mean schedule?", None),
    ({"space": {"warmup": {"values": [0.1, 0.2], "when": {"schedule": "linear"}}}}, "space.warmup.when.schedule", "`schedule` is not in the space; put it there, or drop the condition", None),
    ({"space": {"warmup": {"values": [0.1, 0.2], "when": {"schedul": "linear"}}}}, "space.warmup.when.schedul", "no such setting; did you mean schedule? Put it in the space, too", None),
    ({"space": {"warmup": {"values": [0.1, 0.2], "when": {"foo": "linear"}}}}, "space.warmup.when.foo", "no such setting in the space; use one of learning_rate, warmup", None),
    ({"space": {"warmup": {"values": [0.1, 0.2], "when": {"warmup": 0.1}}}}, "space.warmup.when.warmup", "a condition is on another setting of the space; remove it", "0.1"),
    ({"space": {"warmup": {"values": [0.1], "when": {"schedule": "linaer"}}, "schedule": ["linear", "cosine"]}}, "space.warmup.when.schedule", "`schedule` is never 'linaer' in this space; it is one of linear, cosine; did you mean linear?", "'linaer'"),
    ({"space": {"warmup": {"values": [0.1], "when": {"epochs": 7}}, "epochs": {"low": 1, "high": 5}}}, "space.warmup.when.epochs", "`epochs` is never 7 in this space; it is from 1 to 5", "7"),
    ({"space": {"warmup": {"values": [0.1], "when": {"epochs": 2}}, "epochs": {"low": 1, "high": 5, "step": 2}}}, "space.warmup.when.epochs", "`epochs` is never 2 in this space; it is from 1 to 5 in steps of 2", "2"),
    ({"space": {"warmup": {"values": [0.1], "when": {"epochs": 1}}, "epochs": {"values": [1], "when": {"warmup": 0.1}}}}, "space.warmup.when", "conditions go in a circle, warmup on epochs on warmup; drop one of them", None),
    ({"training": {"learning_rate": 1.0}}, "training.learning_rate", OUTSIDE + "from 0.0001 to 0.01, or remove the line", "1"),
    ({"training": {"epochs": 5}, "space": {"epochs": [1, 3]}}, "training.epochs", OUTSIDE + "one of 1, 3, or remove the line", "5"),
    ({"training": {"epochs": 5}, "space": {"epochs": [3]}}, "training.epochs", OUTSIDE + "3, or remove the line", "5"),
    ({"training": {"clip_norm": None}, "space": {"clip_norm": {"low": 1, "high": 2}}}, "training.clip_norm", OUTSIDE + "from 1 to 2, or remove the line", "null"),
    ({"space": {"model.name": ["torchvision:resnet18"], "model.weights": ["DEFAULT", "none"]}}, "model.name", OUTSIDE + "torchvision:resnet18", "'builtin:convnet'"),
    ({"sampler": {"name": "grid"}}, "space.learning_rate", GRID, "{low: 0.0001, high: 0.01, log: true}"),
    ({"sampler": {"name": "grid"}, "space": {"learning_rate": [1e-3], "batch_size": {"low": 8, "high": 64, "log": True}}}, "space.batch_size", GRID, "{low: 8, high: 64, log: true}"),
    ({"sampler": {"name": "grid"}, "space": {"learning_rate": [1e-3], "epochs": {"low": 1, "high": 1000}, "batch_size": {"low": 1, "high": 1000}}}, "space", "the grid has more than 100000 cells; list fewer values", None),
    ({"sampler": {"enqueue": [{"learning_rate": 1}]}}, "sampler.enqueue[0].learning_rate", "must be from 0.0001 to 0.01", "1"),
    ({"sampler": {"enqueue": [{"schedule": "cosin"}]}, "space": {"schedule": ["linear", "cosine"]}}, "sampler.enqueue[0].schedule", "must be one of linear, cosine; did you mean cosine?", "'cosin'"),
    ({"sampler": {"enqueue": [{}, {"epochs": 5}]}}, "sampler.enqueue[1].epochs", "is not in the space, so it cannot vary; put it there, or fix it in `training`", None),
    ({"sampler": {"enqueue": [{"model.dropout": 0.5}]}}, "sampler.enqueue[0].model.dropout", "is not in the space, so it cannot vary; put it there, or fix it in `model`", None),
    ({"sampler": {"enqueue": [{"lr": 5}]}}, "sampler.enqueue[0].lr", "no such setting in the space; did you mean learning_rate?", None),
    ({"space": {"schedule": ["linear", "exponential"], "decay_factor": {"values": [0.5, 0.9], "when": {"schedule": "exponential"}}}, "sampler": {"enqueue": [{"decay_factor": 0.5}]}}, "sampler.enqueue[0].decay_factor", "is only searched with schedule 'exponential' (here 'linear'); add that, or remove this", "0.5"),
    ({"space": {}, "sampler": {"name": "random"}}, "space", "names nothing to search; add settings, or set `budget.trials: 1` for one run", None),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "place", "rule", "value"), TABLE)
def test_a_space_that_breaks_a_rule_is_told_with_place_value_and_remedy(
    problems: Problems, changes: dict[str, Any], place: str, rule: str, value: str | None
) -> None:
    if changes.get("space") == {}:
        changes = {**changes, "space": None}
    assert problems(**changes) == [Problem(place, rule, value)]


@pytest.mark.parametrize(
    "changes",
    [
        {"space": None, "budget": {"trials": 1}},
        {"space": None, "sampler": {"name": "grid"}},
        {"training": {"learning_rate": 1e-4}},
        {"space": {"epochs": [5, 10]}},  # 3 by default, which is not given: the nearest is used
        {"space": {"clip_norm": [None, 1.0], "model.dropout": [None, 0.1]}},
        {"space": {"learning_rate": {**LR, "points": 3}}, "sampler": {"name": "grid"}},
        {"space": {"learning_rate": {**LR, "points": 3}}, "sampler": {"name": "random"}},
        {"space": {"epochs": {"low": 1, "high": 3}, "learning_rate": [1e-3]}, "sampler": {"name": "grid"}},
        {"sampler": {"enqueue": [{}, {"learning_rate": 1e-3}]}},
        {"space": {"warmup": {"values": [0.1], "when": {"epochs": [2, 3]}}, "epochs": [1, 2, 3]}},
        {
            "space": {
                "optimizer": ["adamw", "sgd"],
                "momentum": {"values": [0.5, 0.8], "when": {"optimizer": "sgd"}},
            },
            "training": {"momentum": 0.9},  # of no trial 0: its optimizer has none
        },
    ],
)  # fmt: skip
def test_a_space_that_keeps_the_rules_has_no_problems(
    problems: Problems, changes: dict[str, Any]
) -> None:
    assert problems(**changes) == []


def test_a_queued_value_under_a_condition_that_cannot_hold_is_told(problems: Problems) -> None:
    found = problems(
        space={
            "optimizer": ["adamw", "sgd"],
            "schedule": {"values": ["linear", "exponential"], "when": {"optimizer": "sgd"}},
            "decay_factor": {"values": [0.5], "when": {"schedule": "exponential"}},
        },
        sampler={"enqueue": [{"decay_factor": 0.5}]},
    )
    rule = "is not searched with these values; remove it"
    assert found == [Problem("sampler.enqueue[0].decay_factor", rule, "0.5")]


def test_every_broken_parameter_is_told_and_the_good_ones_are_still_checked(
    problems: Problems,
) -> None:
    found = problems(
        space={
            "epochs": {"low": 1, "high": 0},
            "warmup": {"values": [0.1], "when": {"epochs": 1}},
            "optimizer": ["sdg", "adamm"],
        },
        sampler={"enqueue": [{"learning_rate": 1}]},
    )
    assert {problem.path for problem in found} == {
        "space.epochs",
        "space.optimizer[0]",
        "space.optimizer[1]",
        "sampler.enqueue[0].learning_rate",
    }


def test_a_misspelt_setting_makes_up_no_contradictions(problems: Problems) -> None:
    space = {"scedule": ["linear", "exponential"], "decay_factor": [0.5, 0.9]}
    assert [problem.path for problem in problems(space=space)] == ["space.scedule"]
