"""The door to study files: a file, or a mapping that a program made, becomes a `StudySpec`.

What is wrong is reported all at once, in one `StudyFileError`: first each setting by itself,
then the files that it names, the space, and what the settings say together. A setting with a
problem is left out of the rules that follow, so that one mistake neither hides another nor makes
up new ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft_tune.errors import Problem, UserError
from sft_tune.spec import checks, contradictions
from sft_tune.spec.differences import differences
from sft_tune.spec.documents import Place, parse_text, read_text
from sft_tune.spec.findings import Findings, plain
from sft_tune.spec.paths import locate
from sft_tune.spec.space_rules import drop_unknown
from sft_tune.spec.study import StudySpec

__all__ = ["LoadedStudy", "differences", "load_study", "parse_study"]


@dataclass(frozen=True)
class LoadedStudy:
    """A study file that was read.

    Attributes:
        spec: the study; its paths are absolute.
        text: the file as it was written.
        path: the file, absolute (``<mapping>`` for a study that a program made). Its folder is
            the study's root (see `sft_tune.spec.paths`).
    """

    spec: StudySpec
    text: str
    path: Path


def load_study(path: str | Path) -> LoadedStudy:
    """Read the study file ``path`` (.yaml, .yml, .json or .toml).

    Raises:
        StudyFileError: the file breaks rules; every one is in its ``problems``, with lines for
            YAML and JSON.
        UserError: there is no such file, or it holds no mapping.
    """
    file = Path(os.path.abspath(Path(path).expanduser()))
    text = read_text(file)
    document = parse_text(text, file.suffix, str(path))
    spec = _study(document.data, file.parent, str(path), document.lines, document.problems)
    return LoadedStudy(spec, text, file)


def parse_study(
    data: Mapping[str, Any], *, root: str | Path, source: str | None = None
) -> StudySpec:
    """Return the study that the mapping ``data`` describes, as a study file would.

    Args:
        data: sections and their settings; what a file would not say should not be in it either
            (dump a `StudySpec` with ``exclude_unset=True``).
        root: the folder that relative paths are relative to.
        source: what errors call the study; default: ``study``.

    Raises:
        StudyFileError: the study breaks rules; every one is in its ``problems``.
        UserError: ``data`` is no mapping.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"a study is a mapping of sections, not a {type(data).__name__}")
    return _study(data, Path(os.path.abspath(root)), source, {}, ())


def _study(
    data: Mapping[Any, Any],
    root: Path,
    source: str | None,
    lines: Mapping[Place, int],
    problems: tuple[Problem, ...],
) -> StudySpec:
    findings = Findings(lines)
    findings.problems += problems
    expanded = checks.expand(plain(data, findings))
    drop_unknown(expanded, findings)
    locate(expanded, str(root), findings)
    spec = contradictions.check(checks.draft(expanded, findings), findings)
    findings.raise_any(source)
    return spec
