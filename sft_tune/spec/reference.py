"""The reference of the study file: every key, its type, default and meaning, as Markdown."""

from __future__ import annotations

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sft_tune.spec.space import Parameter
from sft_tune.spec.study import StudySpec
from sft_tune.spec.wording import limits, model_of, shown, words

_HEADING = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"


def reference_markdown() -> str:
    """Return a table of the keys of each section of a study file, from the fields' descriptions."""
    top: list[str] = []
    sections: list[str] = []
    for name, field in StudySpec.model_fields.items():
        if name == "space":
            text = _table(Parameter)
            sections.append(_section(name, field, text))
        elif (model := model_of(field.annotation)) is not None:
            sections.append(_section(name, field, _table(model)))
        else:
            top.append(_row(name, field))
    return _HEADING + "\n".join(top) + "\n\n" + "\n".join(sections)


def _section(name: str, field: FieldInfo, table: str) -> str:
    needed = " Required." if field.is_required() else ""
    return f"### `{name}`\n\n{field.description}{needed}\n\n{table}"


def _table(model: type[BaseModel]) -> str:
    rows = []
    for name, field in model.model_fields.items():
        rows.append(_row(name, field))
        if (inner := model_of(field.annotation)) is not None:
            rows += [_row(f"{name}.{key}", part) for key, part in inner.model_fields.items()]
    return _HEADING + "\n".join(rows) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    kind = words(field.annotation).removesuffix(" or null" if field.default is None else "\0")
    if bounds := limits(field.metadata):
        kind = f"{kind}, {bounds}"
    default = "required" if field.is_required() else _default(field)
    cells = (f"`{name}`", kind, default, str(field.description))
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    if field.default is None or field.default is PydanticUndefined:
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{value if isinstance(value, str) else shown(value)}`"
