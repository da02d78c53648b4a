"""`sft-tune delete`: a study, its rows and its files, after asking."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from sft_tune.cli.lookup import living
from sft_tune.cli.options import Storage, StudyName
from sft_tune.cli.output import confirm
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
    from sft_tune.store.reads import study_row
    from sft_tune.store.studies import delete_study
    from sft_tune.store.urls import redact
    from sft_tune.view import words

    with open_database(storage) as db:
        row = living(study_row(db, study))
        if row.is_running(time.time()):
            raise UserError(
                f"study {study!r} is running; stop it first (`sft-tune status {study}` says where)"
            )
        sizes = _sizes(row.artifacts)
        print(f"study {study} in {redact(db.url)}: {words.plural(row.trials, 'trial')}")
        if row.artifacts is not None:
            size = words.size(sum(sizes))
            place = words.short_path(row.artifacts)
            print(f"{words.plural(len(sizes), 'file')} ({size}) in {place}")
        if not yes:
            confirm("delete all of this for ever?")
        delete_study(db, study)
    if row.artifacts is not None:
        _remove(row.artifacts)
    print("deleted")


def _sizes(artifacts: str | None) -> list[int]:
    """Return the sizes in bytes of the files that go."""
    from sft_tune.spec.paths import is_url
    from sft_tune.trial.files import RemoteFiles

    if artifacts is None:
        return []
    if is_url(artifacts):
        return list(RemoteFiles(artifacts).all_sizes().values())
    files = (file for part in _parts(artifacts) for file in part.rglob("*") if file.is_file())
    return [file.stat().st_size for file in files]


def _remove(artifacts: str) -> None:
    from sft_tune.run.messages import cache_folder
    from sft_tune.run.retention import working_folder
    from sft_tune.spec.paths import is_url
    from sft_tune.trial.files import RemoteFiles

    folder = working_folder(artifacts, cache_folder())
    if is_url(artifacts):
        RemoteFiles(artifacts).remove_all()  # its name is the study's alone
    for part in _parts(str(folder)):
        shutil.rmtree(part)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _parts(folder: str) -> list[Path]:
    found = [part for pattern in OURS for part in Path(folder).glob(pattern)]
    return sorted(part for part in found if part.is_dir())
