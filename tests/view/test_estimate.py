from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_tune.spec.space import Parameter
from sft_tune.view.checked import draw_check
from sft_tune.view.estimate import (
    batch_sizes,
    estimate,
    token_budgets,
    trial_seconds,
    whole_numbers,
)
from tests.view.conftest import Draw
from tests.view.examples import study_spec

MODEL = {"name": "builtin:convnet", "weights": "none"}


def facts(*sizes: int, seconds: float = 0.1, **changes: Any) -> dict[str, Any]:
    return {
        "data": {
            "source": "sklearn:digits",
            "examples": {"train": 100, "validation": 20, "test": None},
            "class_counts": {"train": {"0": 40, "1": 60}},
            "validation_from": "train",
            "image_size": [8, 8],
        },
        "labels": ["0", "1"],
        "examples": {"train": 100, "validation": 20},
        "parameters": 56_000,
        "trained_parameters": 56_000,
        "evaluation_seconds": 0.5,
        "setup_seconds": 1.0,
        "batch_sizes": [
            {
                "batch_size": size,
                "steps_per_epoch": math.ceil(100 / size),
                "ok": True,
                "seconds_per_step": seconds,
                "peak_memory": 2_000_000,
                "note": "",
            }
            for size in sizes
        ],
        **changes,
    }


def spec_with(space: dict[str, Any], **sections: Any) -> Any:
    return study_spec(
        space=space,
        training={"epochs": 4, "batch_size": 50},
        objective={"rungs": 2},
        **sections,
    )


def test_a_trial_costs_its_setup_its_steps_and_its_rungs() -> None:
    spec = spec_with({})
    # 4 epochs of 2 steps of 0.1 s, 2 evaluations of 0.5 s, 1 s to begin.
    assert trial_seconds(spec, facts(50), 50, 4) == pytest.approx(1 + 0.8 + 1.0)
    # A trial of one step has one rung.
    assert trial_seconds(spec, facts(100), 100, 1) == pytest.approx(1 + 0.1 + 0.5)
    assert math.isnan(trial_seconds(spec, facts(50), 25, 4))


def test_early_rungs_on_a_part_cost_that_part_and_the_best_of_them_once_more(
    draw_text: Draw,
) -> None:
    spec = study_spec(training={"epochs": 4}, objective={"rungs": 5, "evaluate": 5})
    # 4 of 5 rungs on 5 of 20 examples, the last on all, and the best of the others on all.
    assert trial_seconds(spec, facts(50), 50, 4) == pytest.approx(1 + 0.8 + (4 / 4 + 2) * 0.5)
    probed = [(MODEL, facts(50))]
    shown = draw_text(draw_check(spec, "the CPU", probed, estimate(spec, probed)))
    assert "early rungs  on 5 examples of validation, the last on all" in shown


@pytest.mark.parametrize(
    ("task", "counted"),
    [
        ("object-detection", "boxes a class"),
        ("token-classification", "words a tag"),
        ("text-classification", "a class"),
    ],
)
def test_what_is_counted_is_named(draw_text: Draw, task: str, counted: str) -> None:
    spec = study_spec().model_copy(update={"task": task})
    probed = [(MODEL, facts(50))]
    assert counted in draw_text(draw_check(spec, "the CPU", probed, estimate(spec, probed)))


def test_batches_of_tokens_are_probed_and_cost_their_own() -> None:
    spec = spec_with(
        {
            "batch_tokens": {"values": [None, 512, 1024]},
            "batch_size": {"values": [25, 50], "when": {"batch_tokens": None}},
        }
    )
    assert (batch_sizes(spec), token_budgets(spec)) == ([50, 25], [512, 1024])
    probed = facts(50, 25)
    probed["batch_sizes"] += [
        {**probed["batch_sizes"][0], "batch_tokens": tokens, "seconds_per_step": 1.0}
        for tokens in (512, 1024)
    ]
    assert trial_seconds(spec, probed, None, 4, 512) == pytest.approx(1 + 8.0 + 1.0)
    cost = estimate(spec, [(MODEL, probed)])
    assert (cost.default, cost.dearest) == (pytest.approx(2.8), pytest.approx(10.0))
    fixed = study_spec(training={"batch_tokens": 512})
    assert (batch_sizes(fixed), token_budgets(fixed)) == ([], [512])


def test_without_a_space_all_trials_cost_the_same() -> None:
    cost = estimate(spec_with({}, budget={"trials": 1}), [(MODEL, facts(50))])
    assert cost.default == cost.cheapest == cost.dearest == cost.whole == pytest.approx(2.8)
    assert (cost.trials, cost.affordable) == (1, None)


def test_the_space_decides_the_cheapest_and_the_dearest() -> None:
    spec = spec_with({"epochs": [1, 4], "batch_size": [25, 50]}, budget={"trials": 3})
    cost = estimate(spec, [(MODEL, facts(50, 25))])
    assert cost.default == pytest.approx(2.8)
    assert cost.cheapest == pytest.approx(1 + 0.2 + 1.0)
    assert cost.dearest == pytest.approx(1 + 1.6 + 1.0)
    mean = (2.2 + 2.4 + 2.8 + 3.6) / 4
    assert cost.mean == pytest.approx(mean)
    assert cost.whole == pytest.approx(2.8 + 2 * mean)


def test_hours_bound_the_budget_and_say_how_many_trials_they_hold() -> None:
    spec = spec_with({}, budget={"trials": 1000, "hours": 0.1})
    cost = estimate(spec, [(MODEL, facts(50))])
    assert cost.whole == pytest.approx(360.0)
    assert cost.affordable == int(360 / 2.8)
    unlimited = estimate(spec_with({}, budget={"hours": 0.1}), [(MODEL, facts(50))])
    assert (unlimited.trials, unlimited.whole) == (None, pytest.approx(360.0))


def test_a_batch_without_room_costs_nothing_that_is_known(draw_text: Draw) -> None:
    probed = facts(50)
    probed["batch_sizes"][0] |= {"ok": False, "seconds_per_step": None, "note": "out of memory"}
    spec = spec_with({})
    cost = estimate(spec, [(MODEL, probed)])
    assert (cost.default, cost.mean, cost.whole) == (None, None, None)
    text = draw_text(draw_check(spec, "CPU", [(MODEL, probed)], cost))
    assert "no room" in text
    assert "batch size 50: out of memory" in text


def test_batch_sizes_above_the_number_of_examples_are_warned_of(draw_text: Draw) -> None:
    spec = spec_with({"batch_size": [25, 50, 128, 256]})
    probed = [(MODEL, facts(50, 25, 128, 256))]
    text = draw_text(draw_check(spec, "CPU", probed, estimate(spec, probed)), 200)
    assert text.splitlines()[-1] == (
        "space.batch_size: sizes above the 100 training examples all do the same one step an "
        "epoch, over all of them; leave out what is above 100 (got 128, 256)"
    )


def test_the_batch_sizes_to_probe_are_the_choices_or_the_ends_of_the_space() -> None:
    assert batch_sizes(spec_with({})) == [50]
    assert batch_sizes(spec_with({"batch_size": [16, 50, 64]})) == [50, 16, 64]
    assert batch_sizes(spec_with({"batch_size": {"low": 8, "high": 32, "log": True}})) == [32, 8]


@given(st.integers(1, 500), st.integers(0, 500), st.booleans())
def test_the_values_that_stand_for_a_range_are_of_the_range(
    low: int, width: int, log: bool
) -> None:
    parameter = Parameter(low=low, high=low + width, log=log)
    values = whole_numbers(parameter)
    assert values[0] == low
    assert values[-1] == low + width
    assert values == sorted(set(values))
    assert all(parameter.contains(value) for value in values)


def test_a_check_tells_data_models_and_cost(draw_text: Draw) -> None:
    spec = spec_with({"epochs": [1, 4]}, budget={"trials": 10})
    probed = [(MODEL, facts(50)), ({**MODEL, "weights": "DEFAULT"}, facts(50, seconds=0.2))]
    assert draw_text(draw_check(spec, "CPU", probed, estimate(spec, probed)), 100).splitlines() == [
        "s  image-classification, on CPU",
        "",
        "data      sklearn:digits",
        "examples  train 100, validation 20 (validation was taken from train)",
        "classes   2: 0, 1",
        "a class   40 to 60 in train",
        "images    8 x 8 pixels",
        "",
        "model                          parameters  trained  batch  s/step  steps/epoch"
        "  s/evaluation  memory",
        "builtin:convnet, weights none       56.0k    56.0k     50     0.1            2"
        "           0.5  2.0 MB",
        "builtin:convnet                     56.0k    56.0k     50     0.2            2"
        "           0.5  2.0 MB",
        "",
        "a trial     2.8s with the default configuration",
        "            2.2s to 3.6s over the space, 2.8s in the mean",
        "the budget  22s to 28s for 10 trials: the less, the more are pruned",
        "assumed     one trial at a time, spread evenly over the space; `start` measures whether "
        "stacks of",
        "            them are faster",
    ]


def test_classes_of_one_size_are_told_by_one_number(draw_text: Draw) -> None:
    counts = {"train": {"0": 48, "1": 48}}
    probed = facts(50, data={"source": "x", "examples": {}, "class_counts": counts})
    spec = spec_with({})
    text = draw_text(draw_check(spec, "CPU", [(MODEL, probed)], estimate(spec, [(MODEL, probed)])))
    assert "a class   48 in train" in text


def test_what_comes_once_and_how_many_run_at_once_is_counted(draw_text: Draw) -> None:
    none = {"pruner": {"name": "none"}, "budget": {"trials": 9}}
    spec = spec_with({"augment": ["none", "flip"]}, **none)
    probed = [(MODEL, facts(50, features_seconds=7.0)), (MODEL, facts(50, features_seconds=4.0))]
    cost = estimate(spec, probed, begin=5.0, at_once=3)
    assert (cost.begin, cost.features, cost.at_once) == (5.0, 11.0, 3)
    assert cost.whole == pytest.approx(5 + 11 + 9 * 2.8 / 3)
    assert cost.pruned is None
    assert draw_text(draw_check(spec, "CPU", probed, cost), 200).splitlines()[-3:] == [
        "once        5.0s to begin, 11s to make the features that heads train on",
        "the budget  24s at most for 9 trials",
        "assumed     3 trials at a time, spread evenly over the space, steps as with the default "
        "augment",
    ]
    # No more run at once than there are.
    two = spec_with({}, **(none | {"budget": {"trials": 2}}))
    assert estimate(two, probed, at_once=3).whole == pytest.approx(11 + 2.8)
    hours = estimate(spec_with({}, budget={"hours": 0.1}), probed, begin=10.0, at_once=3)
    assert hours.affordable == int((360 - 10 - 11) * 3 / 2.8)


def test_what_start_is_going_to_measure_is_said(draw_text: Draw) -> None:
    def assumed(at_once: int | None, **sections: Any) -> str:
        spec, probed = spec_with({}, **sections), [(MODEL, facts(50))]
        cost = estimate(spec, probed, at_once=at_once)
        assert cost.whole == pytest.approx(2.8 * (cost.trials or 0))
        return draw_text(draw_check(spec, "CPU", probed, cost), 200).splitlines()[-1]

    none: dict[str, Any] = {"pruner": {"name": "none"}}
    assert assumed(None, **none).endswith(
        "one trial at a time; `start` measures whether more, or stacks of them, are faster"
    )
    off = assumed(None, **none, resources={"stack": "off"})
    assert off.endswith("one trial at a time; `start` measures whether more are faster")
    assert assumed(1, **none, resources={"stack": 4}).endswith(
        "one trial at a time; a stack of 4 takes less than its trials one by one"
    )


@pytest.mark.parametrize(
    ("pruner", "share"),
    [
        # To 20 %; a third of them to 60 %; a ninth to the end.
        ({"name": "asha"}, 0.2 + 0.4 / 3 + 0.4 / 9),
        ({"name": "asha", "first": 50, "reduction": 2}, 0.5 + 0.5 / 2),
        ({"name": "median", "first": 20}, 0.2 + 0.8 / 2),
        ({"name": "percentile", "first": 20, "percentile": 25}, 0.2 + 0.8 / 4),
    ],
)
def test_the_pruner_bounds_the_budget_from_below(pruner: dict[str, Any], share: float) -> None:
    spec = spec_with({}, pruner={**pruner, "startup_trials": 4}, budget={"trials": 10})
    cost = estimate(spec, [(MODEL, facts(50))])
    assert cost.whole == pytest.approx(10 * 2.8)
    # Four are whole, and of each of the others 1 s is spent before it trains.
    assert cost.pruned == pytest.approx(4 * 2.8 + 6 * (1 + share * 1.8))


def test_each_fold_costs_a_trial() -> None:
    spec = spec_with({}, data={"source": "sklearn:digits", "folds": 5})
    assert trial_seconds(spec, facts(50), 50, 4) == pytest.approx(5 * 2.8)


def test_ways_to_freeze_are_told_apart(draw_text: Draw) -> None:
    spec = spec_with({"freeze": ["none", "backbone"]})
    probed = [(MODEL, facts(50, freeze=freeze)) for freeze in ("none", "backbone")]
    text = draw_text(draw_check(spec, "CPU", probed, estimate(spec, probed)), 200)
    assert "builtin:convnet, weights none, freeze backbone" in text


def test_texts_are_told_in_tokens(draw_text: Draw) -> None:
    tokens = {"median": 59.0, "p95": 180.0, "max": 400, "limit": 256, "share_cut": 0.04}
    probed = facts(50, data={"source": "x.csv", "examples": {}, "tokens": {"train": tokens}})
    spec = spec_with({})
    text = draw_text(
        draw_check(spec, "GPU 0", [(MODEL, probed)], estimate(spec, [(MODEL, probed)]))
    )
    assert "tokens    median 59, 95 % below 180, at most 400, 4% cut to 256" in text
