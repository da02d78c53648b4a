"""Plain words for types, ranges and values: what messages and the reference say of a setting."""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sft_tune.spec.documents import Place
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.space import Parameter, Value
from sft_tune.spec.study import StudySpec
from sft_tune.spec.training import TrainingSpec

_PLAIN: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
}
ANY_VALUE = "a single value (number, text, true, false or null)"
# Names that other tools give to settings and metrics, too different in spelling for a near match.
_ALIASES = {
    "lr": "learning_rate",
    "eta_min": "min_learning_rate",
    "min_lr": "min_learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "max_tokens": "batch_tokens",
    "tokens_per_batch": "batch_tokens",
    "gamma": "decay_factor",
    "scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "warmup_ratio": "warmup",
    "max_grad_norm": "clip_norm",
    "gradient_clipping": "clip_norm",
    "n_trials": "trials",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "optim": "optimizer",
    "val": "validation",
    "search_space": "space",
    "dataset": "data",
    "min": "low",
    "max": "high",
    "choices": "values",
    "options": "values",
    "acc": "accuracy",
    "f1": "f1_macro",
    "mcc": "matthews",
    "miou": "mean_iou",
}


def words(annotation: Any) -> str:
    """Return in plain words what values the type ``annotation`` admits."""
    annotation, metadata = _bare(annotation)
    if bounds := limits(metadata):  # of one type of a union: those of a whole field are its own
        return f"{words(annotation)}, {bounds}"
    members = members_of(annotation)
    if members is not None:
        if set(members) >= {bool, int, float, str}:
            return ANY_VALUE
        named = [m for m in members if m not in (int, types.NoneType) or float not in members]
        named = [m for m in named if m is not types.NoneType]
        parts = [words(m) for m in named] + (["null"] if types.NoneType in members else [])
        return " or ".join(parts)
    if annotation in _PLAIN:
        return _PLAIN[annotation][0]
    if get_origin(annotation) is Literal:
        return _one_of(get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"a list of {_plural(get_args(annotation)[0])}"
    return "a mapping of settings"


def _plural(annotation: Any) -> str:
    annotation, _ = _bare(annotation)
    members = members_of(annotation)
    if members is not None and set(members) >= {bool, int, float, str}:
        return "single values (numbers, texts, true, false or null)"
    if members is not None:
        return " or ".join(_plural(member) for member in members)
    return _PLAIN[annotation][1] if annotation in _PLAIN else "mappings of settings"


def _one_of(options: Iterable[Any]) -> str:
    names = [str(option) for option in options]
    return f"one of {', '.join(names)}" if len(names) > 1 else names[0]


def _bare(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        extra = [m for info in metadata for m in getattr(info, "metadata", [info])]
        return inner, tuple(extra)
    return annotation, ()


def members_of(annotation: Any) -> tuple[Any, ...] | None:
    """Return the types of a union, or None for any other type."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else None


def model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model in ``annotation``, optional or not; None where there is none."""
    for member in members_of(annotation) or (annotation,):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def limits(metadata: Iterable[Any]) -> str | None:
    """Return the range that ``metadata`` of a field sets: ``at least 0 and below 1``, or None."""
    low = high = None
    for rule in metadata:
        match rule:
            case Gt(gt=bound):
                low = f"above {shown(bound)}"
            case Ge(ge=bound):
                low = f"at least {shown(bound)}"
            case Lt(lt=bound):
                high = f"below {shown(bound)}"
            case Le(le=bound):
                high = f"at most {shown(bound)}"
    return " and ".join(part for part in (low, high) if part) or None


def field_at(model: type[BaseModel], place: Place) -> tuple[Any, tuple[Any, ...]]:
    """Return the type and its metadata at ``place`` below ``model``; ``Any`` where none is."""
    annotation: Any = model
    metadata: tuple[Any, ...] = ()
    for part in place:
        annotation, metadata = _step(annotation, part)
    return annotation, metadata


def _step(annotation: Any, part: str | int) -> tuple[Any, tuple[Any, ...]]:
    annotation, _ = _bare(annotation)
    if annotation is Parameter and isinstance(part, int):  # written as a bare list
        return Value, ()
    for member in members_of(annotation) or (annotation,):
        if isinstance(member, type) and issubclass(member, BaseModel):
            field = member.model_fields.get(str(part))
            return (field.annotation, tuple(field.metadata)) if field else (Any, ())
        if get_origin(member) is tuple and isinstance(part, int):
            return _bare(get_args(member)[0])
        if get_origin(member) is dict and isinstance(part, str):
            return _bare(get_args(member)[1])
    return Any, ()


def settings() -> dict[str, FieldInfo]:
    """Return the fields that a space may search, by the name that `space` gives them."""
    model = {f"model.{name}": field for name, field in ModelSpec.model_fields.items()}
    return {**TrainingSpec.model_fields, **model}


@functools.cache
def kind(name: str) -> Literal["integer", "real", "other"]:
    """Tell what the setting ``name`` holds; only integers and reals can be given as ranges."""
    annotation = settings()[name].annotation
    members = set(members_of(annotation) or (annotation,))
    return "real" if float in members else "integer" if int in members else "other"


def options(name: str) -> tuple[str, ...]:
    """Return the words that the setting ``name`` admits; none where it is free."""
    annotation = settings()[name].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def near(name: str, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``name`` seems to mean, or None."""
    known = list(known)
    plain = name.lower().replace("-", "_").replace(" ", "_")
    if _ALIASES.get(plain) in known:
        return _ALIASES[plain]
    found = difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message that leads from ``name`` to one of ``known``."""
    known = list(known)
    if guess := near(name, known):
        return f"did you mean {guess}?"
    return f"use one of {', '.join(known)}" if len(known) <= 12 else "see `sft-tune schema`"


def belongs_to(key: str) -> str | None:
    """Return the section that has ``key`` (its only one), or None."""
    names = {key, _ALIASES.get(key, key)}
    homes = [
        name
        for name, field in StudySpec.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and names & set(field.annotation.model_fields)
    ]
    return homes[0] if len(homes) == 1 else None


def shown(value: Any, width: int = 60) -> str:
    """Return ``value`` as a study file would write it, on one line, cut to ``width`` characters.

    Passwords in URLs are masked.
    """
    if isinstance(value, float):
        text = f"{value:g}" if math.isclose(value, float(f"{value:g}")) else repr(value)
    elif isinstance(value, str):
        text = f"'{value}'" if value.isprintable() else ascii(value)
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(shown(v) for v in value) + "]"
    else:
        text = json.dumps(value, default=str)
    text = masked(text)
    return text if len(text) <= width else text[: width - 3] + "..."


def masked(text: str) -> str:
    """Return ``text`` with the passwords of the URLs in it replaced by stars."""
    text = re.sub(r"(://[^\s:/@]*):.*@", r"\1:***@", text)
    return re.sub(r"(?i)((?:passw|pwd|secret|token)[^=&\s]*=)[^&\s'\"]*", r"\1***", text)
