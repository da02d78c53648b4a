"""What rules between settings are made of: where a setting stands, and what it can be together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sft_tune.spec.config import setting
from sft_tune.spec.documents import Place
from sft_tune.spec.findings import Findings
from sft_tune.spec.space import Parameter, grid_cells
from sft_tune.spec.study import StudySpec

Finding = tuple[Place, str]
Rule = Callable[[StudySpec, Findings], Iterator[Finding]]


def place_of(spec: StudySpec, name: str) -> Place:
    """Return where the setting ``name`` gets its value: in the space, or in its section."""
    if name in spec.space:
        return ("space", name)
    section, _, key = name.rpartition(".")
    return (section or "training", key)


def places_of(*names: str) -> list[Place]:
    """Return every place that decides the values of the settings ``names``."""
    places: list[Place] = []
    for name in names:
        section, _, key = name.rpartition(".")
        places += [(section or "training", key), ("space", name)]
    return places


def combinations(spec: StudySpec, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield every combination of values that ``names`` can have together in a trial.

    Ranges are stood for by their ends. Conditions on other settings may or may not hold.
    """
    names = list(names)
    part: dict[str, Parameter] = {}
    for name in names:
        if name not in spec.space:
            continue
        parameter = spec.space[name]
        values = dict.fromkeys(parameter.values or parameter.bounds())
        if parameter.values is None:  # inner points matter only where a condition names them
            whens = [(spec.space[n].when or {}).get(name, ()) for n in names if n in spec.space]
            values |= dict.fromkeys(value for when in whens for value in when)
        when = {k: v for k, v in (parameter.when or {}).items() if k in names}
        if len(when) < len(parameter.when or {}):
            values[setting(spec, name)] = None
        part[name] = Parameter(values=tuple(values), when=when or None)
    for cell in grid_cells(part):
        yield {name: cell.get(name, setting(spec, name)) for name in names}


def known_combinations(
    spec: StudySpec, findings: Findings, *names: str
) -> Iterator[dict[str, Any]]:
    """Yield the combinations of values of ``names``, or none where one has a problem of its own."""
    if findings.ok(*places_of(*names)):
        yield from combinations(spec, names)
