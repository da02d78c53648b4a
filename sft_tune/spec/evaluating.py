"""How often a trial is evaluated, and on how much of validation: one rule for all trials.

The last rung is evaluated on the whole split, whatever the rule says, and so is what becomes a
trial's value (see `sft_tune.trial.rungs`). Early rungs may be on a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from sft_tune.spec.config import TrialConfig, fewest_epochs, objective_of
from sft_tune.spec.objective import FEWER_RUNGS, MOST_RUNGS, ObjectiveSpec
from sft_tune.spec.study import StudySpec

SHARE = 0.05
"""Of a trial's cost may be evaluation before `auto` does something about it."""

PASSES = 3
"""A training example costs as much as so many evaluated ones: the backward pass takes twice the
forward one's operations (Kaplan et al. 2020, "Scaling laws for neural language models", 2.1)."""

LEAST = 1000
"""So many examples `auto` keeps: of fewer, chance would decide whom the pruner cuts."""


def rungs_of(objective: ObjectiveSpec, *, train: int, validation: int, epochs: int) -> int:
    """Return how often a trial is evaluated; see `early_examples` for the arguments.

    ``auto``: `MOST_RUNGS`; `FEWER_RUNGS` where those cost more than `SHARE` of the training.
    Fewer rungs come before fewer examples: they make no value less certain.
    """
    if objective.rungs != "auto":
        return objective.rungs
    each = validation
    if not isinstance(objective.evaluate, str):
        each = min(objective.evaluate, validation)
    dear = MOST_RUNGS * each > SHARE * PASSES * train * epochs
    return FEWER_RUNGS if dear else MOST_RUNGS


def early_examples(objective: ObjectiveSpec, *, train: int, validation: int, epochs: int) -> int:
    """Return on how many examples of validation every rung but the last is evaluated.

    ``auto`` counts examples, not seconds, so that it says the same on every machine and in every
    run. Where all rungs on the whole split cost more than `SHARE` of the training, what is left of
    that after two evaluations of the whole split (the last rung, and the rung that was best) is
    spread over the early rungs, never less than `LEAST` on each.

    Args:
        objective: its settings ``evaluate`` and ``rungs``.
        train: examples of the training split.
        validation: examples of the validation split.
        epochs: of the shortest trial of the study.

    Returns:
        A count, at most ``validation``.
    """
    rungs = rungs_of(objective, train=train, validation=validation, epochs=epochs)
    if objective.evaluate == "all" or rungs == 1:
        return validation
    if objective.evaluate != "auto":
        return min(objective.evaluate, validation)
    admitted = SHARE * PASSES * train * epochs
    if rungs * validation <= admitted:
        return validation
    left = (admitted - 2 * validation) / (rungs - 1)
    return min(validation, max(LEAST, int(left)))


def settled(config: TrialConfig, examples: Mapping[str, int]) -> ObjectiveSpec:
    """Return the objective of ``config`` with what `auto` was in its study, of ``examples``.

    It differs where the study has shorter trials: alone, one is its own shortest.
    """
    objective, validation = config.objective, examples["validation"]
    if config.fewest_epochs is None:
        return objective
    sizes = {"train": examples["train"], "validation": validation, "epochs": config.fewest_epochs}
    early = early_examples(objective, **sizes)
    return objective.model_copy(
        update={
            "rungs": rungs_of(objective, **sizes),
            "evaluate": "all" if early == validation else early,
        }
    )


def early_of(spec: StudySpec, examples: Mapping[str, int]) -> int:
    """Return on how many examples of validation the early rungs of ``spec`` are evaluated.

    ``examples`` has the sizes of ``train`` and ``validation``; so it is below.
    """
    return early_examples(objective_of(spec), **_sizes(spec, examples))


def evaluations(spec: StudySpec, examples: Mapping[str, int], steps: float = math.inf) -> float:
    """Return how often a trial of ``steps`` evaluates the whole of validation, at most.

    Early rungs on a part of it count by its share; then the best of them is measured once more.
    """
    rungs = min(rungs_of(objective_of(spec), **_sizes(spec, examples)), steps)
    early, whole = early_of(spec, examples), examples["validation"]
    return rungs if early == whole else (rungs - 1) * early / whole + 2


def evaluation_epochs(spec: StudySpec, examples: Mapping[str, int]) -> float:
    """Return what the evaluations of a whole trial cost, in epochs of its training."""
    evaluated = evaluations(spec, examples) * examples["validation"]
    return evaluated / (PASSES * examples["train"])


def _sizes(spec: StudySpec, examples: Mapping[str, int]) -> dict[str, int]:
    return {
        "train": examples["train"],
        "validation": examples["validation"],
        "epochs": fewest_epochs(spec),
    }
