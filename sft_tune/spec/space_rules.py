"""What a space, its conditions and the queued configurations must keep to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sft_tune.errors import UserError
from sft_tune.spec.checks import setting_rule
from sft_tune.spec.config import default_params, setting
from sft_tune.spec.documents import Place
from sft_tune.spec.findings import Findings
from sft_tune.spec.function_task import is_function
from sft_tune.spec.space import Parameter, in_order
from sft_tune.spec.study import StudySpec
from sft_tune.spec.wording import did_you_mean, kind, near, options, settings, shown

MOST_CELLS = 100_000
MOST_STEPS = 2**40


def drop_unknown(data: dict[str, Any], findings: Findings) -> None:
    """Report the names in the space of ``data`` that are no settings, and remove them from it."""
    space = data.get("space")
    free = is_function(str(data.get("task")))
    for name in list(space) if isinstance(space, dict) else ():
        if free and name.isidentifier():
            continue
        if free:
            del data["space"][name]
            findings.add(("space", name), "must be a name like `depth`", None)
        elif name not in settings():
            del data["space"][name]
            findings.add(("space", name), _unknown_setting(name), None)
            if guess := near(name, settings()):
                findings.meant(("space", guess))


def check_space(spec: StudySpec, findings: Findings) -> StudySpec:
    """Report what is wrong with the space of ``spec``; return ``spec`` with the good part of it."""
    for name, parameter in spec.space.items():
        if findings.ok(("space", name)) and not is_function(spec.task):
            _check_values(name, parameter, findings)
    for name, parameter in spec.space.items():
        if findings.ok(("space", name)):
            _check_condition(name, parameter, spec, findings)
    spec = _usable(spec, findings)
    _check_defaults(spec, findings)
    _check_grid(spec, findings)
    _check_queue(spec, findings)
    _check_something_to_search(spec, findings)
    return spec


def _names(findings: Findings) -> list[str]:
    """Return the names that the file has in its space, good or not."""
    space = findings.written(("space",), None)
    return list(space) if isinstance(space, dict) else []


def _unknown_setting(name: str) -> str:
    known = settings()
    if name in ("model", "training"):
        form = "model.dropout" if name == "model" else "learning_rate"
        return f"the space is flat; write keys like `{form}: [...]`"
    if (bare := name.removeprefix("training.")) in known:
        return f"settings of training have no prefix here; write `{bare}`"
    if f"model.{name}" in known:
        return f"unknown setting; did you mean model.{name}?"
    return f"unknown setting; {did_you_mean(name, known)}"


def _value_places(
    name: str, parameter: Parameter, findings: Findings
) -> Iterator[tuple[Place, Any]]:
    if parameter.values is None:
        yield ("space", name, "low"), parameter.low
        yield ("space", name, "high"), parameter.high
        return
    key: Place = ("values",) if findings.has(("space", name, "values")) else ()
    for index, value in enumerate(parameter.values):
        yield ("space", name, *key, index), value


def _check_values(name: str, parameter: Parameter, findings: Findings) -> None:
    what = kind(name)
    if parameter.values is None and what == "other":
        words = options(name)
        example = f"[{', '.join(words)}]" if words else "[...]"
        findings.add(("space", name), f"has no numbers to range over; list its values: {example}")
        return
    for place, value in _value_places(name, parameter, findings):
        if rule := setting_rule(name, value):
            findings.add(place, rule)
    if what == "integer" and isinstance(parameter.step, float):
        findings.add(("space", name, "step"), f"must be a whole number, as {name} is one")
    if parameter.values is None and parameter.step is not None:
        low, high = parameter.bounds()
        if not (high - low) / parameter.step <= MOST_STEPS:
            findings.add(("space", name, "step"), "is too small for the range; raise it")


def _check_condition(name: str, parameter: Parameter, spec: StudySpec, findings: Findings) -> None:
    for other, allowed in (parameter.when or {}).items():
        place = ("space", name, "when", other)
        if other == name:
            findings.add(place, "a condition is on another setting of the space; remove it")
        elif other not in _names(findings):
            findings.add(place, _no_such_parameter(other, spec), None)
        elif findings.ok(("space", other)):
            for value in allowed:
                if not spec.space[other].contains(value):
                    rule = f"`{other}` is never {shown(value)} in this space"
                    findings.add(place, f"{rule}; it is {describe(spec.space[other], value)}")


def _no_such_parameter(name: str, spec: StudySpec) -> str:
    guess = near(name, spec.space)
    if name in settings() and guess is None:
        return f"`{name}` is not in the space; put it there, or drop the condition"
    if guess is None and (guess := near(name, settings())):
        return f"no such setting; did you mean {guess}? Put it in the space, too"
    known = [key for key in spec.space if key in settings()]
    return f"no such setting in the space; {did_you_mean(name, known)}"


def describe(parameter: Parameter, wanted: Any = None) -> str:
    """Return the values of ``parameter`` in words, with a guess at the one that was ``wanted``."""
    if parameter.values is None:
        low, high = parameter.bounds()
        step = f" in steps of {shown(parameter.step)}" if parameter.step is not None else ""
        return f"from {shown(low)} to {shown(high)}{step}"
    text = ", ".join(str(v) if isinstance(v, str) else shown(v) for v in parameter.values)
    listed = f"one of {text}" if len(parameter.values) > 1 else text
    words = [value for value in parameter.values if isinstance(value, str)]
    guess = near(wanted, words) if isinstance(wanted, str) else None
    return f"{listed}; did you mean {guess}?" if guess else listed


def _usable(spec: StudySpec, findings: Findings) -> StudySpec:
    """Return ``spec`` without the parameters that are broken, in a circle, or depend on such."""
    space = {name: p for name, p in spec.space.items() if findings.ok(("space", name))}
    while gone := [name for name, p in space.items() if set(p.when or ()) - set(space)]:
        space = {name: p for name, p in space.items() if name not in gone}
    try:
        in_order(space)
    except ValueError:
        circle = _circle(space)
        rule = f"conditions go in a circle, {' on '.join(circle)}; drop one of them"
        findings.add(("space", circle[0], "when"), rule, None)
        return _usable(spec.model_copy(update={"space": space}), findings)
    return spec.model_copy(update={"space": space})


def _circle(space: Mapping[str, Parameter]) -> list[str]:
    """Return names that depend on one another in turn, the first one again at the end."""
    roots = set(space)
    while free := {n for n in roots if not roots & set(space[n].when or ())}:
        roots -= free
    path = [next(name for name in space if name in roots)]
    while True:
        following = next(name for name in space[path[-1]].when or () if name in roots)
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)


def _check_defaults(spec: StudySpec, findings: Findings) -> None:
    """Trial 0 is the default configuration: what the file fixes must be in the space."""
    active = default_params(spec)
    for name in active:
        section, _, key = name.rpartition(".")
        place = (section or "training", key)
        if is_function(spec.task):
            place = ("arguments", name)
        value = setting(spec, name)
        if findings.has(place) and findings.ok(place) and not spec.space[name].contains(value):
            known = settings().get(name) if place[0] != "arguments" else None
            required = known is not None and known.is_required()
            rule = (
                "trial 0 is the default configuration, but this value is outside of the space; "
                f"choose {describe(spec.space[name])}{'' if required else ', or remove the line'}"
            )
            findings.add(place, rule)


def _check_grid(spec: StudySpec, findings: Findings) -> None:
    if spec.sampler.name != "grid" or not findings.ok(("sampler", "name")):
        return
    cells = 1
    for name, parameter in spec.space.items():
        size = _grid_size(parameter)
        if size is None:
            rule = "a range in a grid needs `points` (how many values) or `step`; add one"
            findings.add(("space", name), rule)
        else:
            cells *= size
    if cells > MOST_CELLS:
        rule = f"the grid has more than {MOST_CELLS} cells; list fewer values"
        findings.add(("space",), rule, None)


def _grid_size(parameter: Parameter) -> int | None:
    if parameter.values is not None:
        return len(parameter.values)
    low, high = parameter.bounds()
    if parameter.points is not None:
        return parameter.points
    step = parameter.step or (1 if parameter.is_integer and not parameter.log else None)
    return None if step is None else math.floor((high - low) / step + 1e-9) + 1  # see MOST_STEPS


def _check_queue(spec: StudySpec, findings: Findings) -> None:
    known = _names(findings)
    for index, cell in enumerate(spec.sampler.enqueue):
        base: Place = ("sampler", "enqueue", index)
        for name, value in cell.items():
            if name not in known:
                findings.add((*base, name), _not_searched(name, spec), None)
            elif name in spec.space and not spec.space[name].contains(value):
                findings.add((*base, name), f"must be {describe(spec.space[name], value)}")
        _check_active(spec, cell, base, findings)


def _not_searched(name: str, spec: StudySpec) -> str:
    if name in settings():
        section = "model" if name.startswith("model.") else "training"
        return f"is not in the space, so it cannot vary; put it there, or fix it in `{section}`"
    return f"no such setting in the space; {did_you_mean(name, spec.space)}"


def _check_active(
    spec: StudySpec, cell: Mapping[str, Any], base: Place, findings: Findings
) -> None:
    """Report values for parameters whose condition does not hold in the rest of ``cell``."""
    good = {
        name: value
        for name, value in cell.items()
        if name in spec.space and spec.space[name].contains(value)
    }
    active = default_params(spec, good)
    for name in good:
        if name not in active and all(n in active for n in spec.space[name].when or ()):
            needs = " and ".join(
                f"{other} {' or '.join(shown(v) for v in allowed)} (here {shown(active[other])})"
                for other, allowed in (spec.space[name].when or {}).items()
                if active[other] not in allowed
            )
            findings.add((*base, name), f"is only searched with {needs}; add that, or remove this")
        elif name not in active:
            findings.add((*base, name), "is not searched with these values; remove it")


def _check_something_to_search(spec: StudySpec, findings: Findings) -> None:
    places: tuple[Place, ...] = (("space",), ("sampler", "name"), ("budget", "trials"))
    if spec.space or not findings.ok(*places) or spec.sampler.name == "grid":
        return
    if spec.budget.trials != 1:
        rule = "names nothing to search; add settings, or set `budget.trials: 1` for one run"
        findings.add(("space",), rule, None)


def point_asked_for(spec: StudySpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole point of the space that ``given`` means, defaults in place of the rest.

    Raises:
        UserError: for names that are not searched, and values outside of the space.
    """
    findings = Findings({})
    findings.data = {"space": dict.fromkeys(spec.space), "sampler": {"enqueue": [dict(given)]}}
    sampler = spec.sampler.model_copy(update={"enqueue": (dict(given),)})
    _check_queue(spec.model_copy(update={"sampler": sampler}), findings)
    if findings.problems:
        lines = [
            str(replace(problem, path=problem.path.removeprefix("sampler.enqueue[0].")))
            for problem in findings.problems
        ]
        raise UserError("\n".join(lines))
    return default_params(spec, given)
