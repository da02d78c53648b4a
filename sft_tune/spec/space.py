"""What a study file searches: lists, ranges, and their conditions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Value = bool | int | float | str | None


class Parameter(BaseModel):
    """One searched hyperparameter: a list of choices, or a range.

    A study file writes a list (``[adam, sgd]``) or a mapping (``{low: 1e-5, high: 1e-3,
    log: true}``); a list with a condition is ``{values: [...], when: {...}}``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    values: tuple[Value, ...] | None = Field(None, description="Choices (categorical).")
    low: int | float | None = Field(None, description="Lower end of a range, included.")
    high: int | float | None = Field(None, description="Upper end of a range, included.")
    log: bool = Field(False, description="Search the range on a logarithmic scale.")
    step: int | float | None = Field(None, gt=0, description="Distance between the range's values.")
    points: int | None = Field(
        None,
        ge=1,
        description="Grid: so many values of the range, evenly spaced in its scale. Other "
        "samplers ignore it.",
    )
    when: dict[str, tuple[Value, ...]] | None = Field(
        None, description="Searched only while these other hyperparameters have these values."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, raw: Any) -> Any:
        if isinstance(raw, list | tuple):
            raw = {"values": raw}
        if isinstance(raw, Mapping) and isinstance(raw.get("values"), list):
            # As a tuple it also passes pydantic's strict mode, in which study files are read.
            return {**raw, "values": tuple(raw["values"])}
        return raw

    @field_validator("when", mode="before")
    @classmethod
    def _when_of_one(cls, raw: Any) -> Any:
        """Let ``when: {schedule: exponential}`` stand for a list of one."""
        if not isinstance(raw, Mapping):
            return raw
        return {key: tuple(v) if isinstance(v, list | tuple) else (v,) for key, v in raw.items()}

    @model_validator(mode="after")
    def _rules(self) -> Parameter:
        """Raise ValueError for a parameter that is neither a list nor a range, or an empty one."""
        if self.values is not None:
            if (
                any(v is not None for v in (self.low, self.high, self.step, self.points))
                or self.log
            ):
                raise ValueError("give either a list of values or a range, not both")
            if not self.values:
                raise ValueError("a list of values needs at least one; or fix it in `training`")
            # Samplers compare by ==, for which 1, 1.0 and true are one value.
            if len(set(self.values)) < len(self.values):
                raise ValueError("the values of a list must differ; remove the repeated one")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give a list of values, or a range with both `low` and `high`")
        if self.low > self.high:
            raise ValueError("`low` must not exceed `high`; swap them")
        if self.log and self.low <= 0:
            raise ValueError("a logarithmic range needs `low` above 0; raise `low` or drop `log`")
        if self.log and self.step is not None and not (self.is_integer and self.step == 1):
            raise ValueError("a range has `log` or `step`, not both; for a grid use `points`")
        return self

    @property
    def is_integer(self) -> bool:
        """Whether a range holds integers only (both ends, and the step, are integers)."""
        return all(isinstance(v, int) for v in (self.low, self.high, self.step) if v is not None)

    def bounds(self) -> tuple[float, float]:
        """Return ``low, high`` of a range. Raises ValueError for a list."""
        if self.low is None or self.high is None:
            raise ValueError("a list of values has no bounds")
        return self.low, self.high

    def contains(self, value: Any) -> bool:
        """Tell whether ``value`` is one that a sampler could draw (steps included)."""
        if self.values is not None:
            return any(
                v == value and isinstance(v, bool) == isinstance(value, bool) for v in self.values
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        low, high = self.bounds()
        if not low <= value <= high or (self.is_integer and value != int(value)):
            return False
        if self.step is None:
            return True
        steps = (value - low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-8)

    def nearest(self, value: Any) -> Value:
        """Return the value of the space nearest to ``value``; the first choice where none is."""
        if self.contains(value):
            return value  # type: ignore[no-any-return]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.values is not None:
            numbers = [
                v for v in self.values if isinstance(v, int | float) and not isinstance(v, bool)
            ]
            if not number or not numbers:
                return self.values[0]
            return min(numbers, key=lambda v: abs(v - value))
        low, high = self.bounds()
        if not number:
            return low
        inside = min(max(value, low), high)
        if self.step is not None:
            count = min(
                round((inside - low) / self.step), math.floor((high - low) / self.step + 1e-9)
            )
            inside = min(low + count * self.step, high)  # 3 * 0.1 is more than 0.3
        return round(inside) if self.is_integer else float(inside)

    def grid_values(self) -> tuple[Value, ...]:
        """Return the values that a grid tries, in order.

        Raises:
            ValueError: for a real range with neither `points` nor `step`.
        """
        if self.values is not None:
            return self.values
        low, high = self.bounds()
        if self.points is not None:
            return self._evenly_spaced(low, high, self.points)
        step = (
            self.step if self.step is not None else 1 if self.is_integer and not self.log else None
        )
        if step is None:
            raise ValueError("a range in a grid needs `points` (how many values) or `step`")
        count = math.floor((high - low) / step + 1e-9) + 1
        grid = [low + i * step for i in range(count)]
        return tuple(grid) if self.is_integer else tuple(float(f"{v:.12g}") for v in grid)

    def _evenly_spaced(self, low: float, high: float, points: int) -> tuple[Value, ...]:
        share = [i / (points - 1) for i in range(points)] if points > 1 else [0.0]
        if self.log:
            ratio = high / low
            grid = [low * ratio**s for s in share]
        else:
            grid = [low + (high - low) * s for s in share]
        if self.is_integer:
            return tuple(dict.fromkeys(round(v) for v in grid))
        # Twelve digits: 0.30000000000000004 is no value that a person would write in a file.
        return tuple(dict.fromkeys(min(max(float(f"{v:.12g}"), low), high) for v in grid))


Space = Mapping[str, Parameter]


def in_order(space: Space) -> list[str]:
    """Return the names so that every one comes after those its `when` names (a stable order).

    Raises:
        ValueError: when conditions refer to one another in a circle, or to no parameter.
    """
    done: list[str] = []
    left = list(space)
    while left:
        ready = [n for n in left if all(other in done for other in space[n].when or {})]
        if not ready:
            raise ValueError(f"`when` of {', '.join(left)} refers to itself or to no parameter")
        done.append(ready[0])
        left.remove(ready[0])
    return done


def is_active(parameter: Parameter, chosen: Mapping[str, Value]) -> bool:
    """Tell whether the condition of ``parameter`` holds among the values ``chosen`` so far."""
    return all(
        other in chosen and any(chosen[other] == v for v in allowed)
        for other, allowed in (parameter.when or {}).items()
    )


def grid_cells(space: Space) -> Iterator[dict[str, Value]]:
    """Yield every distinct cell of the grid over ``space``; inactive parameters are left out.

    Raises:
        ValueError: for a real range with neither `points` nor `step`.
    """
    names = in_order(space)
    choices = {name: space[name].grid_values() for name in names}
    if not any(space[name].when for name in names):
        for values in itertools.product(*(choices[name] for name in names)):
            yield dict(zip(names, values, strict=True))
        return

    def extend(cell: dict[str, Value], rest: list[str]) -> Iterator[dict[str, Value]]:
        if not rest:
            yield cell
            return
        name, *others = rest
        if not is_active(space[name], cell):
            yield from extend(cell, others)
            return
        for value in choices[name]:
            yield from extend({**cell, name: value}, others)

    yield from extend({}, names)
