"""What differs between a study in the database and its file, and what may."""

from __future__ import annotations

from typing import Any

from sft_tune.spec.config import setting
from sft_tune.spec.space import Parameter
from sft_tune.spec.study import StudySpec
from sft_tune.spec.wording import shown

FREE = ("budget", "confirm", "resources", "storage")
ON_REQUEST = ("sampler", "pruner", "seed")
_WIDTH = 100


def differences(old: StudySpec, new: StudySpec) -> tuple[list[str], list[str]]:
    """Return what forbids to continue the study ``old`` as ``new``, and what must be asked for.

    - Never: name, task, data, model, training, objective, and a space that some old trial would
      not fit, because trials would no longer be comparable. Lists of choices may not change at
      all: Optuna stores a choice as its place in the list.
    - On request: sampler, pruner, seed; a space that only grew (a range widened, or a setting
      added that holds the value it had so far); the fixed value of a setting that is always
      searched, which only says what trial 0 was.
    - Free, and in neither list: budget, confirm, resources, storage.

    Returns:
        Two lists of lines ``path: old -> new``; passwords are masked.
    """
    never: list[str] = []
    on_request: list[str] = []
    before, after = (spec.model_dump(mode="json", exclude={"space"}) for spec in (old, new))
    for path in _paths(before, after):
        top = path.partition(".")[0]
        if top in FREE or _at(before, path) == _at(after, path):
            continue
        asked = top in ON_REQUEST or _always_searched(path, old, new)
        line = f"{path}: {shown(_at(before, path), _WIDTH)} -> {shown(_at(after, path), _WIDTH)}"
        (on_request if asked else never).append(line)
    for name in dict.fromkeys((*old.space, *new.space)):
        if old.space.get(name) != new.space.get(name):
            line = f"space.{name}: {_text(name, old)} -> {_text(name, new)}"
            (on_request if _only_grew(name, old, new) else never).append(line)
    return never, on_request


def _paths(*dumps: dict[str, Any]) -> list[str]:
    """Return the places of every setting in ``dumps``: two levels deep, as sections are."""
    paths: dict[str, None] = {}
    for dump in dumps:
        for key, value in dump.items():
            inner = [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]
            paths |= dict.fromkeys(inner)
    return list(paths)


def _at(dump: dict[str, Any], path: str) -> Any:
    section, _, key = path.partition(".")
    return dump.get(section, {}).get(key) if key else dump.get(section)


def _always_searched(path: str, old: StudySpec, new: StudySpec) -> bool:
    section, _, key = path.partition(".")
    name = {"training": key, "arguments": key, "model": f"model.{key}"}.get(section, "")
    before, after = old.space.get(name), new.space.get(name)
    # A setting that is new in the space was fixed so far: whether it fits, the space's line says.
    return after is not None and not after.when and (before is None or not before.when)


def _text(name: str, spec: StudySpec) -> str:
    parameter = spec.space.get(name)
    if parameter is None:
        return f"{shown(setting(spec, name), _WIDTH)} (fixed)"
    written = parameter.model_dump(mode="json", exclude_defaults=True)
    bare = written["values"] if set(written) == {"values"} else written
    return shown(bare, _WIDTH)


def _only_grew(name: str, old: StudySpec, new: StudySpec) -> bool:
    before, after = old.space.get(name), new.space.get(name)
    if after is None:
        return False
    if before is None:
        return after.contains(setting(old, name))
    if before.when != after.when or before.log != after.log:
        return False
    if before.values is not None or after.values is not None:
        return before.values == after.values
    return before.is_integer == after.is_integer and _holds_range(after, before)


def _holds_range(wide: Parameter, narrow: Parameter) -> bool:
    """Tell whether every value of the range ``narrow`` is one of the range ``wide``."""
    low, high = narrow.bounds()
    if not wide.bounds()[0] <= low <= high <= wide.bounds()[1]:
        return False
    if wide.step is None or (wide.is_integer and wide.step == 1):
        return True
    if narrow.step is None or not wide.contains(low):
        return False
    return low == high or wide.contains(low + narrow.step)
