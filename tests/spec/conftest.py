"""A small valid study, and what the loader says of it when parts are changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_tune.errors import Problem, StudyFileError
from sft_tune.spec.load import parse_study
from sft_tune.spec.study import StudySpec

Parse = Callable[..., StudySpec]
Problems = Callable[..., list[Problem]]

BASE: dict[str, Any] = {
    "name": "base",
    "task": "image-classification",
    "data": {"source": "sklearn:digits"},
    "model": {"name": "builtin:convnet", "weights": "none"},
    "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
}


def changed(**changes: Any) -> dict[str, Any]:
    """Return the base study with keys replaced; mappings are merged into its sections."""
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in BASE.items()}
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if both else value
    return merged


@pytest.fixture
def parse(tmp_path: Path) -> Parse:
    """Return a function that parses the base study with changes."""
    return lambda **changes: parse_study(changed(**changes), root=tmp_path)


@pytest.fixture
def problems(parse: Parse) -> Problems:
    """Return a function that parses the base study with changes and returns its problems."""

    def collect(**changes: Any) -> list[Problem]:
        try:
            parse(**changes)
        except StudyFileError as error:
            return error.problems
        return []

    return collect
