"""Study files as text: YAML, JSON and TOML to plain data with line numbers."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft_tune.errors import Problem, StudyFileError, UserError

Place = tuple[str | int, ...]
"""Where a value stands: keys and list indices from the top of the file."""

SUFFIXES = (".yaml", ".yml", ".json", ".toml")
_TOO_LONG = "holds a number of more digits than a computer converts; shorten it"
MOST_NODES = 100_000
MOST_LEVELS = 12


@dataclass(frozen=True)
class Document:
    """A parsed study file.

    Attributes:
        data: the mapping at its top, as parsed.
        lines: line (from 1) of each place whose line is known.
        problems: keys given twice.
    """

    data: dict[Any, Any]
    lines: dict[Place, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def read_text(path: Path) -> str:
    """Return the text of the study file ``path``.

    Raises:
        UserError: the file is missing, a folder, empty, not text, or of no known suffix.
    """
    if path.is_dir():
        raise UserError(f"a study is a file, but {path} is a folder; name the file in it")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"a study file ends in {', '.join(SUFFIXES)}; rename {path}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no such study file: {path}{_similar_file(path)}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"a study file is UTF-8 text, but byte {error.start} of {path} is not; save it as UTF-8"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the study file {path}: {error}; check the path") from None
    if not text.strip():
        raise UserError(f"the study file {path} is empty; `sft-tune init` writes one to start from")
    return text


def _similar_file(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in SUFFIXES]
    except OSError:
        return "; check the path"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else "; check the path"


def parse_text(text: str, suffix: str, source: str) -> Document:
    """Return the data of the study file text ``text``, of the format that ``suffix`` names.

    Raises:
        StudyFileError: the text breaks the format's syntax; line and column are in its problem.
        UserError: the text is valid but holds no mapping, or is nested beyond reason.
    """
    try:
        document = _PARSERS[suffix.lower()](text, source)
    except RecursionError:
        raise UserError(f"{source} is nested too deeply; a study has five levels at most") from None
    if not isinstance(document.data, dict):
        raise UserError(
            f"a study file is a mapping of sections (name:, task:, data:, ...), "
            f"but {source} holds {_what(document.data)}"
        )
    return document


def _what(data: Any) -> str:
    if data is None:
        return "nothing but comments"
    return "a list" if isinstance(data, list) else "a single value"


def _parse_yaml(text: str, source: str) -> Document:
    # Here and below, a parser is imported when a file needs it: commands that read the database
    # only should not wait for it.
    from sft_tune.spec import yaml12

    return yaml12.parse(text, source)


def _parse_json(text: str, source: str) -> Document:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        problem = Problem(f"column {error.colno}", f"is not JSON: {error.msg}", line=error.lineno)
        raise StudyFileError([problem], source) from None
    except ValueError:
        raise StudyFileError([Problem("text", _TOO_LONG)], source) from None
    from sft_tune.spec import yaml12

    # JSON is YAML in flow style (but for tabs), so that its lines can be found the same way.
    lines, problems = yaml12.lines_of(text.replace("\t", " "))
    return Document(data, lines, tuple(problems))


def _parse_toml(text: str, source: str) -> Document:
    import tomllib

    try:
        return Document(tomllib.loads(text))
    except ValueError as error:
        reason, line, place = str(error), None, "text"
        if found := re.search(r" \(at line (\d+), column (\d+)\)$", reason):
            reason, line = reason[: found.start()], int(found[1])
            place = f"column {found[2]}"
        rule = _TOO_LONG if "digits" in reason else f"is not TOML: {reason}"
        problem = Problem(place, rule, line=line)
        raise StudyFileError([problem], source) from None


_PARSERS: dict[str, Callable[[str, str], Document]] = {
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": _parse_json,
    ".toml": _parse_toml,
}


def dotted(place: Place) -> str:
    """Return ``place`` as it is printed: ``space.optimizer[1]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    text = text.removeprefix(".") or "study"
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 120 else text[:117] + "..."
