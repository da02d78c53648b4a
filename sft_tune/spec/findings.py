"""The problems of a study file while it is being read, and which of its parts can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft_tune.errors import Problem, StudyFileError
from sft_tune.spec.documents import MOST_LEVELS, MOST_NODES, Place, dotted
from sft_tune.spec.wording import shown

_AS_WRITTEN = object()
_DROPPED = object()


class Findings:
    """Collects problems, so that all of them are reported at once.

    Attributes:
        data: what the file says (by `plain`), to show values as they were written.
        problems: what was found so far.
        broken: places that have a problem; rules that need their values must not be applied.
    """

    def __init__(self, lines: Mapping[Place, int]) -> None:
        """Take the ``lines`` of the file's places."""
        self._lines = lines
        self.data: dict[str, Any] = {}
        self.problems: list[Problem] = []
        self.broken: set[Place] = set()

    def add(self, place: Place, rule: str, value: Any = _AS_WRITTEN) -> None:
        """Keep the problem that ``rule`` is broken at ``place``; None shows no value."""
        if value is _AS_WRITTEN:
            text = shown(self.written(place, None)) if self.has(place) else None
        else:
            text = None if value is None else shown(value)
        self.problems.append(Problem(dotted(place), rule, text, self.line(place)))
        self.broken.add(place)

    def meant(self, place: Place) -> None:
        """Keep that a misspelt key seems to mean the one at ``place``: its value is unknown."""
        if not self.has(place):
            self.broken.add(place)

    def written(self, place: Place, default: Any) -> Any:
        """Return the value at ``place`` as the file has it, else ``default``."""
        return lookup(self.data, place, default)

    def has(self, place: Place) -> bool:
        """Tell whether the file has something at ``place``."""
        return self.written(place, _AS_WRITTEN) is not _AS_WRITTEN

    def line(self, place: Place) -> int | None:
        """Return the line of ``place``, or of the nearest place around it that has one."""
        for end in range(len(place), 0, -1):
            if place[:end] in self._lines:
                return self._lines[place[:end]]
        return None

    def ok(self, *places: Place) -> bool:
        """Tell whether no problem was found at ``places``, above or below them."""
        return not any(
            bad[: len(place)] == place or place[: len(bad)] == bad
            for place in places
            for bad in self.broken
        )

    def raise_any(self, source: str | None) -> None:
        """Raise one StudyFileError with every problem, in the file's order, if there are any."""
        if self.problems:
            ordered = sorted(self.problems, key=lambda problem: problem.line or 0)
            raise StudyFileError(ordered, source)


def lookup(data: Any, place: Place, default: Any = None) -> Any:
    """Return the value at ``place`` in nested mappings and lists, else ``default``."""
    for part in place:
        if isinstance(data, Mapping) and part in data:
            data = data[part]
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return default
    return data


def plain(data: Mapping[Any, Any], findings: Findings) -> dict[str, Any]:
    """Return a copy of ``data`` of dicts, lists and JSON scalars; the rest becomes problems.

    The copy is what ``findings`` shows values of.
    """
    visits = 0

    def copy(value: Any, place: Place) -> Any:
        nonlocal visits
        visits += 1
        if visits > MOST_NODES or len(place) > MOST_LEVELS:
            raise RecursionError
        if isinstance(value, Mapping):
            step = copy if place else section
            pairs = [(key, step(item, (*place, key))) for key, item in keys(value, place)]
            return {key: item for key, item in pairs if item is not _DROPPED}
        if isinstance(value, list | tuple):
            items = [copy(item, (*place, index)) for index, item in enumerate(value)]
            # Without one of its items the list would be another one, and its indices wrong.
            return _DROPPED if any(item is _DROPPED for item in items) else items
        rule = _scalar_rule(value)
        if rule is None:
            return value
        findings.add(place, rule, None)
        return _DROPPED

    def section(value: Any, place: Place) -> Any:
        try:
            return copy(value, place)
        except RecursionError:
            findings.add(place, "holds too much, or itself; a study has five levels", None)
            return _DROPPED

    def keys(mapping: Mapping[Any, Any], place: Place) -> list[tuple[str, Any]]:
        good = [key for key in mapping if isinstance(key, str) and _scalar_rule(key) is None]
        for key in mapping:
            if key not in good:
                rule = f"a key is text, not {type(key).__name__}; put it in quotes"
                findings.add(place, rule, None)
        return [(key, mapping[key]) for key in good]

    copied = copy(data, ())
    findings.data = copied if isinstance(copied, dict) else {}
    return findings.data


def _scalar_rule(value: Any) -> str | None:
    """Return the rule that ``value`` breaks as a JSON scalar, or None."""
    if value is None or isinstance(value, bool | float):
        return None
    if isinstance(value, int):
        return None if abs(value) < 2**63 else "must be below 2^63; write a smaller number"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "must be text in Unicode; remove the lone surrogate"
        return "must not hold the character NUL; remove it" if "\0" in value else None
    return f"must be text, a number, true, false or null, not a {type(value).__name__}"
