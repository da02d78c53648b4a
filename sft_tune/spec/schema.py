"""The study file's JSON Schema, for editors that complete and check YAML while it is written."""

from __future__ import annotations

from types import NoneType
from typing import Any

from sft_tune.spec.study import StudySpec
from sft_tune.spec.wording import kind, members_of, options, settings

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SCALAR = {"type": ["string", "number", "boolean", "null"]}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of study files, made of the models' descriptions.

    It admits the short forms of the file: a list for a searched setting, a single value in a
    condition. Paths, ranges of searched values and rules between settings are not in it:
    `load_study` checks those.
    """
    schema = StudySpec.model_json_schema(mode="validation")
    definitions = schema["$defs"]
    definitions["Condition"] = _condition()
    definitions["Range"] = _range(definitions.pop("Parameter"))
    space = schema["properties"]["space"]
    space.pop("additionalProperties")
    space["properties"] = {name: _searched(name) for name in settings()}
    space["additionalProperties"] = False
    _name_settings(definitions["SamplerSpec"])
    for name, field in StudySpec.model_fields.items():
        # pydantic leaves it out where the section's class says the same
        schema["properties"][name]["description"] = field.description
    return {"$schema": DIALECT, **schema, "title": "sft_tune study"}


def _range(parameter: dict[str, Any]) -> dict[str, Any]:
    """Return the mapping form of a searched setting: ``{low, high, log, ...}`` or ``{values}``."""
    properties = parameter["properties"]
    description = properties["when"]["description"]
    # For a union pydantic writes its own keyword `gt`, which no editor knows.
    step = {"type": ["number", "null"], "exclusiveMinimum": 0}
    properties["step"] = {**step, "description": properties["step"]["description"]}
    properties["when"] = {"$ref": "#/$defs/Condition", "description": description}
    parameter["anyOf"] = [{"required": ["values"]}, {"required": ["low", "high"]}]
    return {**parameter, "description": "A range, or a list with a condition."}


def _condition() -> dict[str, Any]:
    one_or_more = {"anyOf": [_SCALAR, {"type": "array", "items": _SCALAR, "minItems": 1}]}
    return {
        "type": "object",
        "properties": dict.fromkeys(settings(), one_or_more),
        "additionalProperties": False,
    }


def _searched(name: str) -> dict[str, Any]:
    """Return the schema of the setting ``name`` in `space`: a list of its values, or a range."""
    types = {"integer": ["integer"], "real": ["number"], "other": ["string"]}[kind(name)]
    if NoneType in (members_of(settings()[name].annotation) or ()):
        types.append("null")
    item = {"enum": list(options(name))} if options(name) else {"type": types}
    choices = {"type": "array", "items": item, "minItems": 1, "uniqueItems": True}
    return {
        "anyOf": [choices, {"$ref": "#/$defs/Range"}],
        "description": settings()[name].description,
    }


def _name_settings(sampler: dict[str, Any]) -> None:
    """Offer the names of the settings in the configurations to try first."""
    enqueue = sampler["properties"]["enqueue"]
    enqueue["items"] = {
        "type": "object",
        "properties": dict.fromkeys(settings(), _SCALAR),
        "additionalProperties": False,
    }
