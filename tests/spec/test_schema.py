from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sft_tune.spec.model import ModelSpec
from sft_tune.spec.schema import DIALECT, json_schema
from sft_tune.spec.study import StudySpec
from sft_tune.spec.training import TrainingSpec

SETTINGS = {*TrainingSpec.model_fields, *(f"model.{key}" for key in ModelSpec.model_fields)}
KEYWORDS = {
    "$schema", "$defs", "$ref", "title", "description", "type", "properties", "required", "enum",
    "additionalProperties", "anyOf", "items", "minItems", "uniqueItems", "default", "const",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength",
    "pattern",
}  # fmt: skip


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema in ``schema``, itself included."""
    if not isinstance(schema, dict):
        return
    yield schema
    for key in ("items", "additionalProperties"):
        yield from nodes(schema.get(key))
    for key in ("properties", "$defs"):
        for inner in schema.get(key, {}).values():
            yield from nodes(inner)
    for inner in schema.get("anyOf", []):
        yield from nodes(inner)


def test_the_schema_is_of_the_dialect_that_it_names() -> None:
    schema = json_schema()
    assert schema["$schema"] == DIALECT
    assert json.loads(json.dumps(schema)) == schema
    for node in nodes(schema):
        assert set(node) <= KEYWORDS, node
        if "$ref" in node:
            assert node["$ref"].removeprefix("#/$defs/") in schema["$defs"]


def test_every_section_and_key_is_described() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(StudySpec.model_fields)
    assert set(schema["required"]) == {"name", "task", "data", "model"}
    for section in (schema, *schema["$defs"].values()):
        for key, node in section.get("properties", {}).items():
            if section is not schema["$defs"]["Condition"]:
                assert node["description"], key


def test_the_space_offers_the_settings_and_no_other_names() -> None:
    space = json_schema()["properties"]["space"]
    assert set(space["properties"]) == SETTINGS
    assert space["additionalProperties"] is False
    definitions = json_schema()["$defs"]
    queued = definitions["SamplerSpec"]["properties"]["enqueue"]["items"]
    for named in (definitions["Condition"], queued):
        assert set(named["properties"]) == SETTINGS
        assert named["additionalProperties"] is False


def test_a_searched_setting_is_a_list_of_its_values_or_a_range() -> None:
    searched = json_schema()["properties"]["space"]["properties"]
    lists = {name: node["anyOf"][0]["items"] for name, node in searched.items()}
    assert lists["optimizer"] == {"enum": ["adamw", "adam", "sgd", "adafactor", "lion", "muon"]}
    assert lists["epochs"] == {"type": ["integer"]}
    assert lists["clip_norm"] == {"type": ["number", "null"]}
    assert lists["learning_rate"] == {"type": ["number"]}
    assert lists["model.weights"] == {"type": ["string"]}
    assert {node["anyOf"][1]["$ref"] for node in searched.values()} == {"#/$defs/Range"}


def test_a_condition_is_on_one_value_or_on_several() -> None:
    condition = json_schema()["$defs"]["Condition"]["properties"]["schedule"]
    assert [node["type"] for node in condition["anyOf"]] == [
        ["string", "number", "boolean", "null"],
        "array",
    ]


def test_unknown_keys_are_wrong_in_every_section() -> None:
    schema = json_schema()
    for name in ("DataSpec", "ModelSpec", "TrainingSpec", "Range", "BudgetSpec"):
        assert schema["$defs"][name]["additionalProperties"] is False
    assert schema["additionalProperties"] is False
