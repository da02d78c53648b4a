"""`sft-tune cache`: what is kept of prepared data and features on this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sft_tune.cli.options import AsJson
from sft_tune.cli.output import confirm, console, print_json
from sft_tune.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sft_tune.trial.kept import Kept


def cache(
    action: Annotated[
        Literal["list", "clear"],
        typer.Argument(metavar="[list|clear]", help="What to do.", show_default=False),
    ] = "list",
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older-than",
            metavar="DAYS",
            min=0,
            show_default=False,
            help="Only what was last used so many days ago.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before clearing.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what is kept of prepared data and of frozen backbones' features, or clear it.

    Nothing that a process uses is deleted; what is missing is made again when it is needed. More
    than a quarter of the disk space that is free or taken by it is not kept: what was used longest
    ago goes by itself. SFT_TUNE_CACHE_SIZE sets another limit.

    Example: sft-tune cache clear --older-than 30
    """
    from sft_tune.run.messages import cache_folder
    from sft_tune.trial.kept import entries, prepared_root
    from sft_tune.trial.kept import older_than as only_older

    root = prepared_root(cache_folder())
    found = entries(root)
    limit, whose = _limit(root, found)
    if older_than is not None:
        found = only_older(found, older_than)
    if action == "clear":
        _clear(root, found, yes=yes, as_json=as_json)
    elif as_json:
        listed = [entry._asdict() for entry in found]
        print_json({"folder": str(root), "limit": limit, "entries": listed})
    else:
        from sft_tune.view import words

        _list(root, found)
        print(f"at most {words.size(limit)} are kept, {whose}")


def _limit(root: Path, found: Sequence[Kept]) -> tuple[int, str]:
    """Return the bytes that may be kept, and who says so in words."""
    from sft_tune.trial.kept import SIZE_VARIABLE, given_limit, usual_limit

    given = given_limit()
    if given is not None:
        return given, f"as {SIZE_VARIABLE} says"
    usual = usual_limit(root, sum(entry.size for entry in found))
    return usual, f"a quarter of what it and the free space are; {SIZE_VARIABLE} sets another limit"


def _list(root: Path, found: Sequence[Kept]) -> None:
    from sft_tune.view import words
    from sft_tune.view.tables import plain_table

    table = plain_table()
    table.add_column("entry")
    table.add_column("size", justify="right")
    table.add_column("last used")
    table.add_column("what")
    for entry in found:
        days = int((time.time() - entry.used) // 86_400)
        ago = f"{words.plural(days, 'day')} ago" if days else "today"
        used = "in use" if entry.in_use else ago
        table.add_row(entry.key[:12], words.size(entry.size), used, entry.about)
    if found:
        console().print(table)
    size = words.size(sum(entry.size for entry in found))
    count = "1 entry" if len(found) == 1 else f"{len(found)} entries"
    print(f"{count}, {size} in {words.short_path(str(root))}")


def _clear(root: Path, found: Sequence[Kept], *, yes: bool, as_json: bool) -> None:
    from sft_tune.trial.kept import remove
    from sft_tune.view import words

    free = [entry for entry in found if not entry.in_use]
    if free and not yes:
        if as_json:
            raise UserError("--json does not ask; give --yes to clear")
        size = words.size(sum(entry.size for entry in free))
        confirm(f"delete {len(free)} of {len(found)} entries ({size})?")
    gone = [entry for entry in free if remove(root, entry.key)]
    freed = sum(entry.size for entry in gone)
    if as_json:
        print_json({"deleted": [entry.key for entry in gone], "bytes": freed})
        return
    left = len(found) - len(gone)
    kept = f"; {left} in use stay" if left else ""
    print(f"{len(gone)} deleted, {words.size(freed)} freed{kept}")
