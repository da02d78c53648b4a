from __future__ import annotations

from typing import Any, get_args

import pytest

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
