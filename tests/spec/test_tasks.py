from __future__ import annotations

from typing import Any, get_args

import pytest

from sft_tune.cli import init
from sft_tune.errors import StudyFileError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.load import parse_study
from sft_tune.spec.study import StudySpec
from sft_tune.spec.tasks import METRICS, TASKS, Metric, Task


def study(**sections: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "task": "image-classification",
        "data": {"source": "sklearn:digits"},
        "model": {"name": "builtin:convnet", "weights": "none"},
        "budget": {"trials": 1},
        **sections,
    }


def test_init_offers_every_task() -> None:
    assert get_args(init.Task) == get_args(Task)


def test_the_tables_know_every_task_and_metric() -> None:
    assert set(TASKS) == set(get_args(Task))
    assert {"auto", *METRICS} == set(get_args(Metric))
    assert {metric for facts in TASKS.values() for metric in facts.metrics} == set(METRICS)
    assert all("loss" in facts.metrics for facts in TASKS.values())


@pytest.mark.parametrize("written", [{}, {"metric": "auto"}, {"rungs": 3}])
def test_the_default_metric_is_named_where_a_study_is_read(written: dict[str, Any]) -> None:
    spec = parse_study(study(objective=written), root=".")
    assert spec.objective.metric == "accuracy"
    again = StudySpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    config = TrialConfig.model_validate(
        {**spec.model_dump(include={"task", "data", "model", "training", "objective"}), "seed": 1}
    )
    assert config.objective == spec.objective


def test_a_metric_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(StudyFileError) as caught:
        parse_study(study(objective={"metric": "accurracy"}), root=".")
    assert "did you mean accuracy?" in str(caught.value)


TEXT = {"task": "text-classification", "model": {"name": "transformers:some/model"}}
NUMBERS = {**TEXT, "task": "text-regression"}
WRITING = {**TEXT, "task": "causal-lm"}


@pytest.mark.parametrize(
    ("sections", "path", "rule"),
    [
        (
            {"objective": {"metric": "rmse"}},
            "objective.metric",
            "does not fit image-classification",
        ),
        (
            {**NUMBERS, "objective": {"metric": "accuracy"}},
            "objective.metric",
            "does not fit text-",
        ),
        ({"training": {"loss": "mse"}}, "training.loss", "has no meaning for image-classification"),
        ({"space": {"loss": ["mse", "mae"]}}, "space.loss", "has no meaning"),
        (
            {**NUMBERS, "training": {"label_smoothing": 0.1}},
            "training.label_smoothing",
            "no meaning",
        ),
        ({**NUMBERS, "data": {"source": ".", "classes": ["a", "b"]}}, "data.classes", "no meaning"),
        ({"data": {"source": ".", "multi_label": True}}, "data.multi_label", "no meaning"),
        (
            {**TEXT, "data": {"source": ".", "label_columns": ["a", "b"]}},
            "data.label_columns",
            "needs data.multi_label: true",
        ),
        (
            {
                **TEXT,
                "data": {"source": ".", "multi_label": True},
                "objective": {"metric": "matthews"},
            },
            "objective.metric",
            "does not fit multi_label",
        ),
        ({**NUMBERS, "objective": {"direction": "maximize"}}, "objective.direction", "when lower"),
        (
            {**NUMBERS, "objective": {"metric": "r2"}, "budget": {"trials": 1, "target": 1.5}},
            "budget.target",
            "r2 is not above 1",
        ),
        ({**WRITING, "training": {"freeze": "backbone"}}, "training.freeze", "about a new head"),
        (
            {**WRITING, "space": {"head_multiplier": {"low": 1, "high": 3}}},
            "space.head_multiplier",
            "no meaning for causal-lm: no new head",
        ),
        ({**WRITING, "objective": {"beams": 4}}, "objective.beams", "no meaning but with chrf"),
        ({**TEXT, "data": {"source": ".", "packing": True}}, "data.packing", "has no meaning"),
        (
            {**WRITING, "data": {"source": ".", "messages_column": "m", "prompt_column": "p"}},
            "data.prompt_column",
            "beside messages_column",
        ),
    ],
)
def test_what_does_not_fit_the_task_is_told(sections: dict[str, Any], path: str, rule: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        parse_study(study(**{"data": {"source": "."}, **sections}), root=".")
    assert [problem.path for problem in caught.value.problems] == [path]
    assert rule in caught.value.problems[0].rule
