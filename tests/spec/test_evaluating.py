from __future__ import annotations

from typing import Any

import pytest

from sft_tune.spec.config import assemble, default_params, fewest_epochs, objective_of
from sft_tune.spec.evaluating import (
    LEAST,
    PASSES,
    SHARE,
    early_examples,
    early_of,
    evaluation_epochs,
    rungs_of,
    settled,
)
from sft_tune.spec.objective import ObjectiveSpec
from sft_tune.spec.study import StudySpec


@pytest.mark.parametrize(
    ("evaluate", "train", "validation", "epochs", "expected"),
    [
        ("all", 1_000, 100_000, 1, 100_000),
        (500, 1_000, 100_000, 1, 500),
        (500, 1_000, 400, 1, 400),
        # 10 rungs of 1,000 are more than 5 % of 3 x 1,000, but fewer say too little.
        ("auto", 1_000, 1_000, 1, 1_000),
        ("auto", 1_000, 1_001, 1, LEAST),
        # 10 x 10,000 of 3 x 40,000 x 17 = 2,040,000 examples are 4.9 %; of 16 epochs 5.2 %.
        ("auto", 40_000, 10_000, 17, 10_000),
        ("auto", 40_000, 10_000, 16, (96_000 - 20_000) // 9),
        # What two whole evaluations leave is less than the least.
        ("auto", 40_000, 10_000, 4, LEAST),
    ],
)
def test_early_rungs_take_what_the_budget_leaves(
    evaluate: Any, train: int, validation: int, epochs: int, expected: int
) -> None:
    objective = ObjectiveSpec(evaluate=evaluate, rungs=10)
    found = early_examples(objective, train=train, validation=validation, epochs=epochs)
    assert found == expected


def test_one_rung_is_the_last() -> None:
    objective = ObjectiveSpec(evaluate=5, rungs=1)
    assert early_examples(objective, train=10, validation=100, epochs=1) == 100


@pytest.mark.parametrize("train", [20_000, 60_000, 300_000])
@pytest.mark.parametrize("epochs", [3, 10, 30])
def test_auto_keeps_evaluation_below_its_share_where_two_whole_ones_and_the_least_fit(
    train: int, epochs: int
) -> None:
    rungs, validation = 10, train // 5
    objective = ObjectiveSpec(rungs=rungs)
    early = early_examples(objective, train=train, validation=validation, epochs=epochs)
    cost = (rungs - 1) * early + (validation if early == validation else 2 * validation)
    least = min(rungs * validation, 2 * validation + (rungs - 1) * LEAST)
    assert cost <= max(SHARE * PASSES * train * epochs, least)


@pytest.mark.parametrize(
    ("objective", "train", "validation", "epochs", "expected"),
    [
        ({"rungs": 7}, 100, 10**6, 1, 7),
        # 10 x 1,000 of 3 x 4,000 x 17 = 204,000 examples are 4.9 %; of 16 epochs 5.2 %.
        ({}, 4_000, 1_000, 17, 10),
        ({}, 4_000, 1_000, 16, 5),
        ({"evaluate": "all"}, 4_000, 1_000, 16, 5),
        ({"evaluate": 900}, 4_000, 1_000, 16, 10),
    ],
)
def test_there_are_fewer_rungs_where_they_are_dear(
    objective: dict[str, Any], train: int, validation: int, epochs: int, expected: int
) -> None:
    spec = ObjectiveSpec(**objective)
    assert rungs_of(spec, train=train, validation=validation, epochs=epochs) == expected


@pytest.mark.parametrize(
    ("sections", "rungs"),
    [
        ({}, "auto"),
        ({"pruner": {"name": "none"}}, "auto"),
        ({"pruner": {"first": 40, "reduction": 2}}, "auto"),
        # Cuts at 10, 30 and 90 % are not between five rungs.
        ({"pruner": {"first": 10}}, 10),
        ({"pruner": {"name": "hyperband", "first": 30}}, 10),
        ({"pruner": {"name": "median"}}, 10),
        ({"training": {"patience": 3}}, 10),
        ({"space": {"patience": [2, 3]}}, 10),
        ({"data": {"source": "sklearn:digits", "folds": 3}}, 10),
        ({"data": {"source": "sklearn:digits", "folds": 3}, "objective": {"rungs": 4}}, 4),
    ],
)
def test_what_counts_rungs_has_them_all(sections: dict[str, Any], rungs: Any) -> None:
    spec = _study(**{"space": {}, **sections})
    assert objective_of(spec).rungs == rungs
    assert assemble(spec, default_params(spec), 0).objective.rungs == rungs


def _study(space: dict[str, Any], **sections: Any) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "task": "image-classification",
            "data": {"source": "sklearn:digits"},
            "model": {"name": "builtin:convnet", "weights": "none"},
            "training": {"epochs": 5},
            "space": space,
            **sections,
        }
    )


@pytest.mark.parametrize(
    ("space", "fewest"),
    [
        ({}, 5),
        ({"epochs": [8, 2, 4]}, 2),
        ({"epochs": {"low": 7, "high": 9}}, 7),
        (
            {
                "optimizer": ["sgd", "adam"],
                "epochs": {"low": 7, "high": 9, "when": {"optimizer": "sgd"}},
            },
            5,
        ),
    ],
)
def test_the_shortest_trial_of_a_study_is_known_to_each(space: dict[str, Any], fewest: int) -> None:
    spec = _study(space)
    assert fewest_epochs(spec) == fewest
    config = assemble(spec, default_params(spec), 3)
    assert (config.fewest_epochs or config.training.epochs) == fewest


def test_what_auto_was_in_a_study_of_shorter_trials_is_known_of_each_alone() -> None:
    sizes = {"train": 20_000, "validation": 5_000}
    spec = _study({"epochs": [1, 50]}, pruner={"name": "none"})
    trial = assemble(spec, {"epochs": 50}, 0)
    found = settled(trial, sizes)
    assert (found.rungs, found.evaluate) == (5, early_of(spec, sizes)) == (5, LEAST)
    # By its own epochs it would be another one; where there are no others, nothing is to be said.
    alone = trial.model_copy(update={"fewest_epochs": None})
    assert early_examples(alone.objective, **sizes, epochs=50) == 5_000
    assert settled(alone, sizes) == alone.objective


def test_what_the_study_is_does_not_change_what_a_configuration_is() -> None:
    config = assemble(_study({}), {}, 0)
    other = config.model_copy(update={"fewest_epochs": 2})
    assert config.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    ("objective", "train", "validation", "epochs", "expected"),
    [
        # Ten rungs of 300 examples, a third of a training pass each, beside 100 to train on.
        ({"rungs": 10}, 100, 300, 4, 10.0),
        ({"rungs": 1}, 100, 300, 4, 1.0),
        # Nine of 1,000 early ones, the last on all, and the best of the early ones once more.
        ({"rungs": 10}, 30_000, 9_000, 1, (9 * 1_000 + 2 * 9_000) / 90_000),
    ],
)
def test_evaluations_cost_so_many_epochs(
    objective: dict[str, Any], train: int, validation: int, epochs: int, expected: float
) -> None:
    spec = StudySpec.model_validate(
        {
            "name": "s",
            "task": "image-classification",
            "data": {"source": "images"},
            "model": {"name": "builtin:convnet"},
            "training": {"epochs": epochs},
            "objective": objective,
        }
    )
    examples = {"train": train, "validation": validation}
    assert evaluation_epochs(spec, examples) == pytest.approx(expected)
