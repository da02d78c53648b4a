"""The files on a trial's page of the dashboard, made when they are opened: nothing is copied."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sft_tune.store.database import Database
from sft_tune.store.reads import list_studies, trial_rows
from sft_tune.store.rows import StudyRow, TrialRow
from sft_tune.view import words

_OURS = re.compile(r"5f7e-([0-9a-f]+)-([0-9a-f]+)-([0-9a-f])")
_THEIRS = re.compile(r"[0-9a-fA-F-]{36}")
_GONE = b"this file is gone\n"


class File(NamedTuple):
    """A kind of file: its name on the page, and its MIME type."""

    name: str
    mimetype: str


FILES: Mapping[int, File] = {
    1: File("configuration.json", "application/json"),
    2: File("log.txt", "text/plain; charset=utf-8"),
    3: File("best-checkpoint.md", "text/markdown; charset=utf-8"),
}


def file_id(study_id: int, number: int, kind: int) -> str:
    """Return the id under which the dashboard asks for a file; it takes hex digits and dashes."""
    return f"5f7e-{study_id:x}-{number:x}-{kind:x}"


def file_kinds(study: StudyRow, row: TrialRow) -> list[int]:
    """Return which of `FILES` the trial ``row`` has."""
    has = {1: row.config is not None, 2: _log(study, row).is_file(), 3: row.checkpoint is not None}
    return [kind for kind, there in has.items() if there]


class TrialFiles:
    """What Optuna calls an artifact store: ours from the database, uploads from a folder."""

    def __init__(self, db: Database, uploads: Path) -> None:
        """Keep what people upload in ``uploads``, made when it is first needed."""
        self._db = db
        self._uploads = uploads

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open a file; one that is gone says so."""
        ours = _OURS.fullmatch(artifact_id)
        if ours:
            study_id, number, kind = (int(part, 16) for part in ours.groups())
            return io.BytesIO(self._content(study_id, number, kind))
        path = self._upload(artifact_id)
        return path.open("rb") if path is not None and path.is_file() else io.BytesIO(_GONE)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Keep what a person uploads."""
        path = self._upload(artifact_id)
        if path is not None:
            self._uploads.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content_body.read())

    def remove(self, artifact_id: str) -> None:
        """Remove an upload; files of ours stay where they are."""
        path = self._upload(artifact_id)
        if path is not None:
            path.unlink(missing_ok=True)

    def _upload(self, artifact_id: str) -> Path | None:
        return self._uploads / artifact_id if _THEIRS.fullmatch(artifact_id) else None

    def _content(self, study_id: int, number: int, kind: int) -> bytes:
        studies = [s for s in list_studies(self._db) if s.optuna_study_id == study_id]
        rows = trial_rows(self._db, studies[0].name, number) if studies else []
        if not rows or kind not in file_kinds(studies[0], rows[0]):
            return _GONE
        study, row = studies[0], rows[0]
        if kind == 1:
            return json.dumps(row.config, indent=2, ensure_ascii=False).encode()
        return _log(study, row).read_bytes() if kind == 2 else _card(study, row).encode()


def _log(study: StudyRow, row: TrialRow) -> Path:
    return Path(study.artifacts or "/nowhere", f"trial-{row.number:05d}", "log.txt")


def _card(study: StudyRow, row: TrialRow) -> str:
    """Return what a person wants to know of a checkpoint before loading it."""
    path = Path(row.checkpoint or "")
    there = words.size(path.stat().st_size) if path.is_file() else "not on this machine"
    metrics = "".join(f"- {name}: {words.score(v)}\n" for name, v in row.metrics.items())
    settings = "".join(f"- {name}: {words.setting(v)}\n" for name, v in row.params.items())
    model = (row.config or {}).get("model", {}).get("name", "?")
    return (
        f"# Best checkpoint of trial {row.number} of {study.name}\n\n"
        f"{path} ({there})\n\n"
        f"Model {model}, at {row.best_progress} % of the trial's schedule, seed {row.seed}.\n\n"
        f"## On validation\n\n{metrics}\n## What was searched\n\n{settings}\n"
        "## Load it\n\n"
        "    import sft_tune.trial.load\n\n"
        f"    model = sft_tune.trial.load.load_checkpoint({str(path)!r})\n"
    )
