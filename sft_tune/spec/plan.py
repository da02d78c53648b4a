"""What a study tries at a given place: enqueued configurations, then grid cells, then free draws.

The place of a trial (its ordinal, from 0) is claimed in the database by one runner at a time, so
a grid's cell is tried once, whatever dies and restarts, and finding it costs the same at 5,000
cells as at 50.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sft_tune.spec.config import default_params
from sft_tune.spec.function_task import is_function
from sft_tune.spec.search import BudgetSpec
from sft_tune.spec.space import Parameter, Value, grid_cells
from sft_tune.spec.study import StudySpec

DEFAULT_TRIALS = 30
COST = "epochs"
"""The hyperparameter that a trial's cost is taken to be proportional to."""

MODEL = "model.name"
"""The one that decides what an epoch costs."""


@dataclass(frozen=True)
class Plan:
    """The points that are known before the search begins.

    Attributes:
        enqueued: the default configuration, then those of `sampler.enqueue`.
        cells: a grid's cells in the order they are tried; None for other samplers.
    """

    enqueued: tuple[dict[str, Value], ...]
    cells: tuple[dict[str, Value], ...] | None

    def fixed(self, ordinal: int) -> dict[str, Value] | None:
        """Return the point of the trial at place ``ordinal``; None where the sampler chooses."""
        if ordinal < len(self.enqueued):
            return self.enqueued[ordinal]
        index = ordinal - len(self.enqueued)
        if self.cells is not None and index < len(self.cells):
            return self.cells[index]
        return None

    def limit(self, budget: BudgetSpec) -> int | None:
        """Return the total of trials that ``budget`` admits; None: no limit but time or target."""
        if self.cells is not None:
            total = len(self.enqueued) + len(self.cells)
            return total if budget.trials is None else min(total, budget.trials)
        if budget.trials is None and budget.hours is None:
            return DEFAULT_TRIALS
        return budget.trials


def make_plan(spec: StudySpec) -> Plan:
    """Return the plan of ``spec``: deterministic, the same in every process that asks."""
    enqueued = [default_params(spec)]
    for entry in spec.sampler.enqueue:
        point = default_params(spec, entry)
        if point not in enqueued:
            enqueued.append(point)
    if spec.sampler.name != "grid":
        return Plan(tuple(enqueued), None)
    cells = [cell for cell in grid_cells(spec.space) if cell not in enqueued]
    # Shuffled, so that a budget smaller than the grid still sees all of its corners.
    random.Random(spec.seed).shuffle(cells)
    return Plan(tuple(enqueued), tuple(cells))


def weighs_cost(spec: StudySpec) -> bool:
    """Tell whether the sampler of ``spec`` asks what a trial promises for what it costs.

    With a number of trials to spend, a dear trial is as good as a cheap one: better, if anything.
    """
    if spec.sampler.name != "tpe" or not has_costs(spec):
        return False
    if spec.sampler.cost_aware == "auto":
        budget = spec.budget
        timed = budget.hours is not None and budget.trials is None
        return timed or budget.target is not None
    return spec.sampler.cost_aware


def has_costs(spec: StudySpec) -> bool:
    """Tell whether trials of ``spec`` differ in epochs or model, so that some are cheaper."""
    return _is_cost(spec.space.get(COST)) or (MODEL in spec.space and not is_function(spec.task))


def _is_cost(parameter: Parameter | None) -> bool:
    """Tell whether all values are numbers above 0; those of a function of the user's need not."""
    if parameter is None:
        return False
    values = parameter.bounds() if parameter.values is None else parameter.values
    return all(isinstance(v, int | float) and v > 0 for v in values)
