"""What commands write to: a console for people, JSON for programs, files."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sft_tune.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

PIPE_WIDTH = 200
"""Columns of what is not a terminal: wide, since nobody can widen a pipe."""


def console(*, stderr: bool = False) -> Console:
    """Return a console on standard output that takes text as it is: no markup, no emoji.

    Colours appear on terminals only, and not where ``NO_COLOR`` is set.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    fixed = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=stderr, width=fixed, highlight=False, markup=False, emoji=False)


def check_folder_of(output: Path) -> None:
    """Check that what ``--output`` names can be written, before the work that it is for.

    Raises:
        UserError: its folder does not exist.
    """
    if not output.parent.is_dir():
        raise UserError(f"--output: the folder {output.parent} does not exist; make it")


def confirm(question: str) -> None:
    """Ask before what cannot be taken back, and end the line.

    Raises:
        Abort: the answer is no, or there is none.
    """
    ended = False
    try:
        answer = typer.confirm(question)
        ended = sys.stdin.isatty()  # by the one who answered
    finally:
        if not ended:
            print()
    if not answer:
        raise typer.Abort


def print_json(data: Any) -> None:
    """Print ``data`` as JSON that every reader accepts: what is no finite number is null."""
    print(json_text(data))


def json_text(data: Any) -> str:
    """Return what `print_json` prints."""
    return json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, Mapping):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, datetime):
        return data.isoformat(timespec="seconds")
    if isinstance(data, Path):
        return str(data)
    return data
