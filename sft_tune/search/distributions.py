"""A study file's space in Optuna's terms: one distribution a parameter, drawn in order."""

from __future__ import annotations

from decimal import Decimal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from sft_tune.spec.space import Parameter, Space, Value, in_order, is_active


def to_distribution(parameter: Parameter) -> BaseDistribution:
    """Return Optuna's distribution of ``parameter``.

    A range of integers is an `IntDistribution`, any other range a `FloatDistribution`, a list a
    `CategoricalDistribution`.
    """
    if parameter.values is not None:
        return CategoricalDistribution(parameter.values)
    low, high = parameter.bounds()
    if parameter.is_integer:
        step = 1 if parameter.step is None else int(parameter.step)
        # Optuna warns when `high` is not on the step's grid: end the range where its values end.
        last = int(low) + (int(high) - int(low)) // step * step
        return IntDistribution(int(low), last, log=parameter.log, step=step)
    if parameter.step is None:
        return FloatDistribution(low, high, log=parameter.log)
    # In decimals, as the file has them and as Optuna checks them: 3 * 0.1 is 0.3 here.
    first, end, apart = (Decimal(str(v)) for v in (low, high, parameter.step))
    return FloatDistribution(
        low, float(first + (end - first) // apart * apart), step=parameter.step
    )


def draw(trial: Trial, space: Space) -> dict[str, Value]:
    """Let ``trial`` suggest a value for each active parameter of ``space``.

    Values that the trial already has (it was taken over) or that were fixed are kept.
    """
    chosen: dict[str, Value] = {}
    for name in in_order(space):
        parameter = space[name]
        if is_active(parameter, chosen):
            chosen[name] = _suggest(trial, name, parameter)
    return chosen


def _suggest(trial: Trial, name: str, parameter: Parameter) -> Value:
    distribution = to_distribution(parameter)
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name,
            distribution.low,
            distribution.high,
            step=distribution.step,
            log=distribution.log,
        )
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            name,
            distribution.low,
            distribution.high,
            step=distribution.step,
            log=distribution.log,
        )
    raise TypeError(f"{name}: no way to draw from {distribution}")
