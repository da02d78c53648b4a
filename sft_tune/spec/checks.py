"""Each setting by itself: pydantic's errors in plain words, with place, value and remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from sft_tune.spec.documents import Place, dotted
from sft_tune.spec.findings import Findings, lookup
from sft_tune.spec.function_task import NONE, is_function
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.space import Parameter
from sft_tune.spec.study import StudySpec
from sft_tune.spec.tasks import Task
from sft_tune.spec.training import TrainingSpec
from sft_tune.spec.wording import (
    belongs_to,
    did_you_mean,
    field_at,
    kind,
    limits,
    members_of,
    model_of,
    near,
    settings,
    shown,
    words,
)

_LIMITS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_SHAPES = {"string_too_short", "string_too_long", "string_pattern_mismatch"}
# What stands in for required keys that are missing or wrong, so that the rest can be checked;
# rules that read them are skipped, as their places are broken.
_STAND_INS: tuple[tuple[Place, str], ...] = (
    (("name",), "study"),
    (("task",), "image-classification"),
    (("data", "source"), "."),
    (("model", "name"), "builtin:convnet"),
)
_SECTIONS = {
    name: field.is_required()
    for name, field in StudySpec.model_fields.items()
    if name not in ("name", "task", "seed")
}

Model = TypeVar("Model", bound=BaseModel)


def expand(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``data`` with the short forms of the file written out, as the models have them.

    A section with nothing under it is an empty one, a parameter that is a list has ``values``,
    a condition on one value is one on a list, and values of real settings are floats (an
    integer range would otherwise be searched in whole steps).
    """
    full = {key: value for key, value in data.items() if value is not None or key not in _SECTIONS}
    if "confirm" in data and data["confirm"] is None:
        full["confirm"] = {}  # Optional, so that being there says something.
    if is_function(str(full.get("task"))):
        full = {"data": {"source": NONE}, "model": {"name": NONE}, **full}
    for key, required in _SECTIONS.items():
        if required:
            full.setdefault(key, {})
    space = full.get("space")
    if isinstance(space, Mapping):
        full["space"] = {name: _expand_parameter(name, raw) for name, raw in space.items()}
    return full


def _expand_parameter(name: str, raw: Any) -> Any:
    if isinstance(raw, list):
        raw = {"values": raw}
    if not isinstance(raw, Mapping):
        return raw
    full = dict(raw)
    if isinstance(when := full.get("when"), Mapping):
        full["when"] = {k: v if isinstance(v, list) else [v] for k, v in when.items()}
    if name in settings() and kind(name) == "real":
        full |= {key: _real(full[key]) for key in ("low", "high", "step") if key in full}
        if isinstance(values := full.get("values"), list):
            full["values"] = [_real(value) for value in values]
    return full


def _real(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def build(model: type[Model], data: Mapping[str, Any]) -> Model:
    """Return ``data`` as a ``model``, with no conversions: "1" is no number, true no integer.

    Raises:
        ValidationError: where it does not fit.
    """
    # JSON, because pydantic's strict mode refuses lists for tuples in Python data.
    return model.model_validate_json(json.dumps(data), strict=True)


def draft(data: dict[str, Any], findings: Findings) -> StudySpec:
    """Return ``data`` (expanded) as a study; keys that break a rule are reported and left out.

    What remains is valid, so that the rules between settings can be applied to it.
    """
    try:
        return build(StudySpec, data)
    except ValidationError as error:
        places = _report(error, findings)
    for place in places:
        _remove(data, place)
    for place, value in _STAND_INS:
        if lookup(data, place) is None:
            data.setdefault(str(place[0]), value if len(place) == 1 else {})
            if len(place) == 2:
                data[str(place[0])][place[1]] = value
    return build(StudySpec, data)


def _remove(data: dict[str, Any], place: Place) -> None:
    section = data.get(str(place[0]))
    if len(place) > 1 and isinstance(section, dict):
        section.pop(str(place[1]), None)
    else:
        data.pop(str(place[0]), None)


def _report(error: ValidationError, findings: Findings) -> list[Place]:
    """Add a problem for each place that ``error`` names; return the places."""
    groups: dict[Place, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        groups.setdefault(_place(detail, findings), []).append(detail)
    # `[0, "a"]` for "auto, cpu or a list of whole numbers" fails once as a word, once at "a".
    places = [p for p in groups if not any(q[: len(p)] == p and q != p for q in groups)]
    for place in places:
        rule = _rule(StudySpec, place, groups[place], findings.written(place, None))
        what = groups[place][0]["type"]
        if what in ("missing", "extra_forbidden"):
            findings.add(place, rule, None)
        else:
            findings.add(place, rule)
        known = _fields_around(StudySpec, place) if what == "extra_forbidden" else ()
        if guess := near(str(place[-1]), known):
            findings.meant((*place[:-1], guess))
    return places


def _place(detail: ErrorDetails, findings: Findings) -> Place:
    """Return where ``detail`` stands in the file; pydantic also names branches of unions."""
    if detail["type"] == "missing":
        return detail["loc"]
    place: Place = ()
    for part in detail["loc"]:
        if findings.has((*place, part)):
            place = (*place, part)
    return place


def _rule(model: type[BaseModel], place: Place, details: Sequence[ErrorDetails], value: Any) -> str:
    what = details[0]["type"]
    annotation, metadata = field_at(model, place)
    if what == "missing":
        return f"is required: {_description(model, place)}"
    if what == "extra_forbidden":
        return _unknown_key(model, place)
    if what == "value_error":
        return str(details[0]["ctx"]["error"])
    number = _number_in(value)
    if number is not None and not math.isfinite(number) and float in _members(annotation):
        return "must be a finite number"
    if all(detail["type"] in _LIMITS for detail in details):
        return f"must be {limits(metadata)}{_as_share(limits(metadata), number)}"
    if place == ("task",):
        choices = get_args(Task)
        guess = did_you_mean(value, choices) if isinstance(value, str) else ""
        remedy = f"; {guess}" if guess.startswith("did") else ""
        return f"must be {words(Task)}, or python:module:function{remedy}"
    if what in _SHAPES:
        return f"is not of the right form: {_description(model, place)}"
    if annotation is Parameter:
        return (
            "must be a list of values or a range {low: ..., high: ...}; "
            "a fixed value belongs in `training`"
        )
    if (
        isinstance(value, list | Mapping)
        and place[:1] in (("training",), ("model",))
        and len(place) > 1
    ):
        return f"must be {words(annotation)}; what is searched stands in `space`"
    return f"must be {words(annotation)}{_remedy(annotation, value)}"


def _as_share(bounds: str | None, number: float | None) -> str:
    """Return the end of a message where ``number`` is a percentage of what ends at 1."""
    if number is None or not 5 <= number < 100 or not str(bounds).endswith((" 1", " 1.0")):
        return ""
    return f"; if that is percent, write {number / 100:g}"


def setting_rule(name: str, value: Any) -> str | None:
    """Return the rule that ``value`` breaks as the setting ``name`` of a space, or None."""
    section, _, key = name.rpartition(".")
    model: type[BaseModel] = ModelSpec if section == "model" else TrainingSpec
    stand_in = {"name": "builtin:convnet"} if section == "model" else {}
    try:
        build(model, {**stand_in, key: value})
    except ValidationError as error:
        annotation, _ = field_at(model, (key,))
        details = error.errors(include_url=False)
        return (
            f"must be {words(annotation)}"
            if value is None
            else _rule(model, (key,), details, value)
        )
    return None


def first_problem(model: type[BaseModel], error: ValidationError) -> str:
    """Return the first problem of ``error`` with values of a ``model``: place, rule and value."""
    detail = error.errors(include_url=False)[0]
    place, value = detail["loc"], detail["input"]
    return f"{dotted(place)}: {_rule(model, place, [detail], value)} (got {shown(value)})"


def _description(model: type[BaseModel], place: Place) -> str | None:
    return _fields_around(model, place)[str(place[-1])].description


def _fields_around(model: type[BaseModel], place: Place) -> dict[str, FieldInfo]:
    parent = model_of(field_at(model, place[:-1])[0])
    return dict(parent.model_fields) if parent else {}


def _unknown_key(model: type[BaseModel], place: Place) -> str:
    key = str(place[-1])
    known = list(_fields_around(model, place))
    home = belongs_to(key)
    if home is not None and home not in place and key not in known:
        return f"unknown key here; it belongs in `{home}`"
    return f"unknown key; {did_you_mean(key, known)}"


def _remedy(annotation: Any, value: Any) -> str:
    """Return the end of a message: what to do about ``value``, where the type alone says it."""
    members = _members(annotation)
    numeric = int in members or float in members
    if value is None:
        return "; or remove the line to have the default"
    section = model_of(annotation)
    if section is not None and isinstance(value, str | int | float) and value is not True:
        return f"; write {{{next(iter(section.model_fields))}: {value}}}"
    if isinstance(value, str):
        number = _number_in(value)
        if float in members and value.endswith("%") and _number_in(value[:-1]) is not None:
            return f"; write {float(value[:-1]) / 100:g}"
        if numeric and number is not None and math.isfinite(number):
            return "; remove the quotes"
        choices = [
            o for m in (annotation, *members) if get_origin(m) is Literal for o in get_args(m)
        ]
        guess = did_you_mean(value, choices) if choices else ""
        return f"; {guess}" if guess.startswith("did") else ""
    if str in members and isinstance(value, bool | int | float):
        return "; put it in quotes"
    if isinstance(value, float) and math.isfinite(value) and int in members:
        return f"; write {int(value)} without a point" if value.is_integer() else "; round it"
    return ""


def _members(annotation: Any) -> tuple[Any, ...]:
    return members_of(annotation) or (annotation,)


def _number_in(value: Any) -> float | None:
    """Return the number that ``value`` is, or is the text of; None where it is neither."""
    try:
        return float(value) if isinstance(value, str | int | float) else None
    except ValueError:
        return None
