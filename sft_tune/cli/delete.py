"""`sft-tune delete`: a study, its rows and its files, after asking."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from sft_tune.cli.lookup import living
from sft_tune.cli.options import Storage, StudyName
from sft_tune.errors import UserError
from sft_tune.session import open_database

OURS = ("trial-*", "workers")
"""What a study's folder holds of ours; nothing else in it is touched."""


def delete(
    study: StudyName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    storage: Storage = None,
) -> None:
    """Delete a study and its files; asks first.

    Example: sft-tune delete my-study
    """
    from sft_tune.store.reads import study_row, trial_rows
    from sft_tune.store.studies import delete_study
    from sft_tune.store.urls import redact
    from sft_tune.view import words

    with open_database(storage) as db:
        row, _ = living(study_row(db, study), trial_rows(db, study))
        if row.is_running(time.time()):
            raise UserError(
                f"study {study!r} is running; stop it first (`sft-tune status {study}` says where)"
            )
        parts = _parts(row.artifacts)
        files = [file for part in parts for file in part.rglob("*") if file.is_file()]
        print(f"study {study} in {redact(db.url)}: {words.plural(row.trials, 'trial')}")
        if row.artifacts is not None:
            size = words.size(sum(file.stat().st_size for file in files))
            place = words.short_path(row.artifacts)
            print(f"{words.plural(len(files), 'file')} ({size}) in {place}")
        if not yes and not typer.confirm("delete all of this for ever?"):
            raise typer.Abort
        delete_study(db, study)
    for part in parts:
        shutil.rmtree(part)
    folder = None if row.artifacts is None else Path(row.artifacts)
    if folder is not None and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    print("deleted")


def _parts(artifacts: str | None) -> list[Path]:
    if artifacts is None:
        return []
    found = [part for pattern in OURS for part in Path(artifacts).glob(pattern)]
    return sorted(part for part in found if part.is_dir())
