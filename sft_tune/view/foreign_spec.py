"""A study that another program made with Optuna, as those see it who need a study file."""

from __future__ import annotations

from collections.abc import Mapping

from sft_tune.spec.data import DataSpec
from sft_tune.spec.function_task import NONE
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.objective import ObjectiveSpec
from sft_tune.spec.space import Parameter
from sft_tune.spec.study import StudySpec
from sft_tune.spec.tasks import Direction
from sft_tune.store.rows import StudyRow

TASK = "python:optuna:objective"
"""What stands for the other program: a function of someone's own, whose settings are its own."""


def spec_of(study: StudyRow, space: Mapping[str, Parameter]) -> StudySpec:
    """Return the study file that ``study`` would have.

    Only for reading: its name may be one that no study file can have, and nothing can run it.

    Args:
        study: one that is Optuna's alone.
        space: what it searched.
    """
    direction: Direction = "maximize" if study.direction == "maximize" else "minimize"
    return StudySpec.model_construct(
        name=study.name,
        task=TASK,  # type: ignore[arg-type]
        data=DataSpec(source=NONE),
        model=ModelSpec(name=NONE),
        space=dict(space),
        objective=ObjectiveSpec(metric=study.metric or "value", direction=direction),
    )
