"""A whole study file: frozen models, one place for every key, default and description.

The sections have modules of their own. The JSON Schema for editors and the reference in the
README are both made from the descriptions in them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.objective import ObjectiveSpec, resolve_direction, with_metric
from sft_tune.spec.resources import ResourcesSpec, StorageSpec
from sft_tune.spec.search import BudgetSpec, ConfirmSpec, PrunerSpec, SamplerSpec
from sft_tune.spec.section import Section
from sft_tune.spec.space import Parameter, Value
from sft_tune.spec.tasks import TASKS, Direction, Task
from sft_tune.spec.training import TrainingSpec

# A user's own training function (see `function_task`).
FunctionTask = Annotated[str, Field(pattern=r"^python:.+")]
if TYPE_CHECKING:
    # What trains the built-in tasks never sees another.
    AnyTask = Task
else:
    AnyTask = Task | FunctionTask


class StudySpec(Section):
    """One study: what to fine-tune, on what, what to search, for how long."""

    name: str = Field(
        min_length=1,
        max_length=120,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the study, unique in its database: letters, digits, '.', '_', '-'.",
    )
    task: AnyTask = Field(
        description="What the model learns to do: "
        + ", ".join(TASKS)
        + ", or a training function of yours: python:module:function or python:file.py:function."
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Seed of the sampler and, with its number, of each trial."
    )
    data: DataSpec = Field(description="Where the examples come from.")
    model: ModelSpec = Field(description="What is fine-tuned.")
    training: TrainingSpec = Field(
        default_factory=TrainingSpec, description="The settings that are not searched."
    )
    arguments: dict[str, Value] = Field(
        default_factory=dict,
        description="Settings of a training function of yours, by any name: fixed, or the defaults "
        "of those that are searched (else: the first choice, the lowest value).",
    )
    space: dict[str, Parameter] = Field(
        default_factory=dict,
        description="The settings that are searched: keys of training, or model.KEY; of a "
        "training function of yours any name.",
    )
    objective: ObjectiveSpec = Field(
        default_factory=ObjectiveSpec, description="What is optimized."
    )
    sampler: SamplerSpec = Field(
        default_factory=SamplerSpec, description="How configurations are chosen."
    )
    pruner: PrunerSpec = Field(
        default_factory=PrunerSpec, description="When a trial is stopped early."
    )
    budget: BudgetSpec = Field(default_factory=BudgetSpec, description="When the study ends.")
    confirm: ConfirmSpec | None = Field(
        None,
        description="When given, `start` trains the best configurations again over fresh seeds "
        "at the end, and evaluates them on the test split. `sft-tune confirm` does it any time.",
    )
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec, description="Where trials run.")
    storage: StorageSpec = Field(default_factory=StorageSpec, description="Where results are kept.")

    @model_validator(mode="after")
    def _with_metric(self) -> Self:
        """Name the metric that ``auto`` stands for: whoever reads a study need not know tasks."""
        object.__setattr__(self, "objective", with_metric(self.objective, self.task))
        return self

    @property
    def direction(self) -> Direction:
        """The direction of the objective, ``auto`` resolved."""
        return resolve_direction(self.objective)
