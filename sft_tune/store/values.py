"""How Python values become columns: strict JSON, floats that are no numbers, text, times.

SQL databases disagree on NaN and infinity (MySQL refuses them, SQLite makes NaN a NULL), and
so do JSON readers. Here a column holds NULL in their place, and the row's ``non_finite`` column
says which column is what; inside JSON they are the strings ``NaN``, ``Infinity`` and
``-Infinity``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

LONGEST_TEXT = 100_000


def dumps(value: Any) -> str:
    """Return ``value`` as JSON that every reader accepts; non-finite floats become strings."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_without_non_finite(value), allow_nan=False)


def loads(text: str | None) -> Any:
    """Return what ``dumps`` was given, non-finite floats still as strings; None for NULL."""
    return None if text is None else json.loads(text)


def load_numbers(text: str | None) -> dict[str, float]:
    """Return a mapping of numbers that ``dumps`` wrote, non-finite ones included."""
    return {name: float(value) for name, value in (loads(text) or {}).items()}


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return _kind(value)
    if isinstance(value, Mapping):
        return {key: _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(item) for item in value]
    return value


def _kind(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def split_floats(values: Mapping[str, float | None]) -> dict[str, Any]:
    """Return columns for ``values``: NULL for non-finite ones, named in ``non_finite``."""
    kinds = {
        name: _kind(value)
        for name, value in values.items()
        if value is not None and not math.isfinite(value)
    }
    columns: dict[str, Any] = {
        name: None if name in kinds else value for name, value in values.items()
    }
    columns["non_finite"] = dumps(kinds) if kinds else None
    return columns


def join_float(value: float | None, non_finite: str | None, name: str) -> float | None:
    """Return the float that ``split_floats`` was given for the column ``name``."""
    if value is not None or non_finite is None:
        return value
    return load_numbers(non_finite).get(name)


def plain_text(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return ``text`` as every database stores it.

    PostgreSQL refuses NUL characters and no database takes half a surrogate pair. Of a text over
    ``longest`` characters the end is kept: in a traceback the cause stands last.
    """
    clean = text.replace("\x00", "\N{REPLACEMENT CHARACTER}")
    clean = clean.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= longest else "..." + clean[-longest:]


def utc(now: float) -> datetime:
    """Return the epoch seconds ``now`` as naive UTC, which is what Optuna's tables hold too."""
    return datetime.fromtimestamp(now, UTC).replace(tzinfo=None)


def aware(moment: datetime | None) -> datetime | None:
    """Return a naive UTC column as an aware datetime."""
    return None if moment is None else moment.replace(tzinfo=UTC)
