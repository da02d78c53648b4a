"""A trial's complete configuration: what a worker needs to run it, and to run it again alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sft_tune.spec.data import DataSpec
from sft_tune.spec.function_task import is_function
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.objective import FEWER_RUNGS, MOST_RUNGS, ObjectiveSpec, with_metric
from sft_tune.spec.space import Value, in_order, is_active
from sft_tune.spec.study import AnyTask, StudySpec
from sft_tune.spec.tasks import TASKS
from sft_tune.spec.training import TrainingSpec

# The settings of version 0.1, all of them part of the fingerprint. Later ones count where they
# differ from their default, which is what the trials did that were run before they existed.
_FIRST_SETTINGS: dict[str, frozenset[str]] = {
    "data": frozenset(
        "source train validation test subset text_column image_column label_column classes "
        "validation_fraction test_fraction split_seed train_limit validation_limit test_limit "
        "image_size normalize max_length".split()
    ),
    "model": frozenset({"name", "weights", "dropout"}),
    "training": frozenset(
        "epochs batch_size optimizer learning_rate momentum weight_decay schedule warmup "
        "min_learning_rate decay_factor clip_norm label_smoothing freeze head_multiplier augment "
        "precision".split()
    ),
    "objective": frozenset({"metric", "direction", "rungs"}),
}


class TrialConfig(BaseModel):
    """Everything that decides a trial's result: complete, fixed settings included."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: AnyTask
    data: DataSpec
    model: ModelSpec
    training: TrainingSpec
    objective: ObjectiveSpec
    arguments: dict[str, Value] = Field(default_factory=dict)
    seed: int = Field(description="Seed of this trial alone, made by `trial_seed`.")
    fewest_epochs: int | None = Field(
        None, ge=1, description="Of any trial of its study (see `evaluating`). Default: its own."
    )

    @model_validator(mode="after")
    def _with_metric(self) -> Self:
        object.__setattr__(self, "objective", with_metric(self.objective, self.task))
        return self

    @property
    def is_folded(self) -> bool:
        """Whether it is to be trained once for each fold."""
        return self.data.folds is not None and self.data.fold is None

    def of_fold(self, fold: int) -> Self:
        """Return the configuration of the fold ``fold``, from 0, alone."""
        return self.model_copy(update={"data": self.data.model_copy(update={"fold": fold})})

    def fingerprint(self) -> str:
        """Return a digest of the configuration, without seed and study, to find duplicates.

        A setting that a later version adds does not change it while it has its default.
        """
        left_out = {"seed", "fewest_epochs"}
        record = self.model_dump(mode="json", exclude=left_out)
        changed = self.model_dump(mode="json", exclude=left_out, exclude_defaults=True)
        for section, first in _FIRST_SETTINGS.items():
            kept = first | set(changed.get(section, {}))
            record[section] = {k: v for k, v in record[section].items() if k in kept}
        facts = TASKS.get(self.task)
        if facts is not None and facts.input == "text":
            # Before there was this setting batches were random, which is not its default.
            record["training"]["batching"] = self.training.batching
        if not record["arguments"]:
            del record["arguments"]
        text = json.dumps(record, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def trial_seed(study_seed: int, number: int) -> int:
    """Return the seed of trial ``number``: 31 bits of a digest of both, so that they share none."""
    digest = hashlib.sha256(f"{study_seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def finalist_seed(study_seed: int, index: int) -> int:
    """Return the seed of the confirmation run ``index`` (from 0) of every finalist of a study.

    All finalists have the same, so that what a seed does to them cancels out in their difference;
    no trial of the search has it.
    """
    digest = hashlib.sha256(f"{study_seed}/confirm/{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def setting(spec: StudySpec, name: str) -> Any:
    """Return the fixed value of the setting ``name`` (``learning_rate`` or ``model.dropout``)."""
    if is_function(spec.task):
        return spec.arguments.get(name)
    section, _, key = name.rpartition(".")
    return getattr(spec.model if section == "model" else spec.training, key)


def default_params(
    spec: StudySpec, overrides: Mapping[str, Value] | None = None
) -> dict[str, Value]:
    """Return the default point of the space, with ``overrides`` where given.

    Each active parameter takes its fixed setting, or the nearest value that its space has.
    """
    chosen: dict[str, Value] = {}
    for name in in_order(spec.space):
        parameter = spec.space[name]
        if is_active(parameter, chosen):
            given = overrides is not None and name in overrides
            value = overrides[name] if given and overrides else setting(spec, name)
            chosen[name] = parameter.nearest(value)
    return chosen


def assemble(spec: StudySpec, params: Mapping[str, Value], number: int) -> TrialConfig:
    """Return the complete configuration of trial ``number`` at the point ``params`` of the space.

    Raises:
        pydantic.ValidationError: for a value that the setting does not admit.
    """
    if is_function(spec.task):
        return TrialConfig(
            task=spec.task,
            data=spec.data,
            model=spec.model,
            training=spec.training,
            objective=spec.objective,
            arguments={**spec.arguments, **params},
            seed=trial_seed(spec.seed, number),
        )
    training = {k: v for k, v in params.items() if "." not in k}
    model = {k.removeprefix("model."): v for k, v in params.items() if k.startswith("model.")}
    return TrialConfig(
        task=spec.task,
        data=spec.data,
        model=ModelSpec.model_validate({**spec.model.model_dump(), **model}),
        training=TrainingSpec.model_validate({**spec.training.model_dump(), **training}),
        objective=objective_of(spec),
        seed=trial_seed(spec.seed, number),
        fewest_epochs=fewest_epochs(spec) if "epochs" in spec.space else None,
    )


def objective_of(spec: StudySpec) -> ObjectiveSpec:
    """Return the objective of the trials of ``spec``: with all rungs that something asks for.

    `MOST_RUNGS` in place of ``auto`` where fewer would change what happens at them: whom the
    pruner compares, what patience counts. Folds differ in size by an example: none may have fewer.
    """
    objective, pruner = spec.objective, spec.pruner
    if objective.rungs != "auto":
        return objective
    patience = spec.training.patience is not None or "patience" in spec.space
    cuts = [pruner.first]
    while cuts[-1] * pruner.reduction < 100:
        cuts.append(cuts[-1] * pruner.reduction)
    halving = pruner.name in ("asha", "hyperband")
    between = halving and any(cut % (100 // FEWER_RUNGS) for cut in cuts)
    each = pruner.name not in ("asha", "hyperband", "none")
    if patience or between or each or spec.data.folds is not None:
        return objective.model_copy(update={"rungs": MOST_RUNGS})
    return objective


def fewest_epochs(spec: StudySpec) -> int:
    """Return the epochs of the shortest trial that ``spec`` admits."""
    parameter, fixed = spec.space.get("epochs"), spec.training.epochs
    if parameter is None:
        return fixed
    values = parameter.values if parameter.values is not None else parameter.bounds()
    searched = [int(value) for value in values if isinstance(value, int | float)]
    return min([*searched, fixed] if parameter.when else searched, default=fixed)
