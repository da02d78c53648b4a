"""What our tables know, put on the dashboard's pages: notes, files and plots, while it serves.

Done by the process that serves, never by one that trains. What is there and as it should be is
not written again. A note of ours ends in a line that no reader sees, with a digest of the text
before it; a note in which that does not agree was written or changed by a person, and stays.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from sft_tune.store.dashboard_side import DashboardSide
from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import load_optuna_study
from sft_tune.store.reads import list_studies
from sft_tune.store.rows import StudyRow, TrialRow
from sft_tune.view import words
from sft_tune.view.dashboard_files import FILES, file_id, file_kinds
from sft_tune.view.material import Material, gather
from sft_tune.view.plots.draw_course import draw_curves
from sft_tune.view.plots.draw_time import draw_cost
from sft_tune.view.plots.style import titled
from sft_tune.view.tables import FINISHED, state_of_trial

SECONDS = 5.0
"""Between two looks at the database."""

MOST_TRIALS = 1000
"""Trials of a study that get notes and files: each page reads all of them at once."""

_MOST_CURVES = 100
_MARK = "\n\n[//]: # (sft_tune {digest})"


def sealed(text: str) -> str:
    """Return ``text`` with the line by which it is known as ours, and unchanged."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return text + _MARK.format(digest=digest)


def is_ours(note: str | None) -> bool:
    """Tell whether a note may be replaced: none is there, or it is as we wrote it."""
    if note is None:
        return True
    text, _, _ = note.rpartition(_MARK.split("{", 1)[0])
    return note == sealed(text)


class Sync:
    """Keeps the dashboard's side of every study of ``db`` in step."""

    def __init__(self, db: Database) -> None:
        """Nothing is written yet."""
        self._db = db
        self._seen: dict[str, object] = {}

    def once(self, now: float) -> int:
        """Bring every study that changed up to date; return how many those were.

        ``now`` is in seconds since 1970.
        """
        changed = 0
        for study in list_studies(self._db):
            state = (study.states, study.best, study.ended, study.optuna_study_id)
            if not study.managed or study.optuna_study_id is None:
                continue
            if self._seen.get(study.name) != state:
                self._update(study, study.optuna_study_id, now)
                self._seen[study.name] = state
                changed += 1
        return changed

    def _update(self, study: StudyRow, study_id: int, now: float) -> None:
        from optuna_dashboard import save_note, save_plotly_graph_object

        material = gather(self._db, study.name, now, importances=False)
        optuna_study = load_optuna_study(self._db, study.name)
        side = DashboardSide(self._db, study_id)
        text = sealed(study_note(material))
        if is_ours(side.note(None)) and side.note(None) != text:
            save_note(optuna_study, text)
        for row in shown(material.trials, material.maximize):
            trial_id = side.trial_ids.get(row.number)
            if trial_id is None:
                continue
            text = sealed(trial_note(material, row))
            old = side.note(trial_id)
            if is_ours(old) and old != text:
                # As much of Optuna's Trial as a note needs; a true one would ask the sampler.
                handle: Any = SimpleNamespace(
                    storage=optuna_study._storage, study=optuna_study, _trial_id=trial_id
                )
                save_note(handle, text)
            for kind in file_kinds(study, row):
                artifact = file_id(study_id, row.number, kind)
                if not side.has_artifact(trial_id, artifact):
                    side.add_artifact(trial_id, artifact, *FILES[kind])
        curves, cost = draw_curves(material, _MOST_CURVES), draw_cost(material)
        save_plotly_graph_object(optuna_study, titled(curves), graph_object_id="learning-curves")
        save_plotly_graph_object(optuna_study, titled(cost), graph_object_id="cost-and-quality")


def shown(rows: Sequence[TrialRow], maximize: bool, most: int = MOST_TRIALS) -> list[TrialRow]:
    """Return the ended trials that get notes: of too many the best half and the latest."""
    ended = [row for row in rows if row.state in FINISHED]
    if len(ended) <= most:
        return ended
    worst = float("-inf") if maximize else float("inf")

    def value(row: TrialRow) -> float:
        return worst if row.value is None or row.value != row.value else row.value

    leading = sorted(ended, key=value, reverse=maximize)[: most // 2]
    chosen = {row.number for row in leading}
    latest = [row for row in reversed(ended) if row.number not in chosen][: most - len(chosen)]
    return sorted(leading + latest, key=lambda row: row.number)


def trial_note(material: Material, row: TrialRow) -> str:
    """Return what the page of a trial says of it: why it ended, flags, how to run it again."""
    lines = [f"**{state_of_trial(row, material.now)}**"]
    if row.value is not None:
        at = "" if row.best_progress is None else f" at {row.best_progress} % of its schedule"
        lines[0] += f": {material.metric} {words.score(row.value)}{at}"
    if row.note:
        lines.append(_quoted(row.note))
    if row.flags:
        lines.append(f"Flags: {_quoted(str(row.flags))}")
    if row.error:
        lines.append(f"```text\n{row.error.strip()[-1500:].replace('```', '')}\n```")
    if row.config is not None:
        file = (material.record and material.record.path) or f"{material.study.name}.yaml"
        command = f"sft-tune train {file} --trial {row.number}"
        lines.append(f"Train it again:\n\n```sh\n{command}\n```")
    return "\n\n".join(lines)


def study_note(material: Material) -> str:
    """Return what the page of a study says of it: its study file."""
    text = "" if material.record is None else material.record.text
    return f"The study file of **{material.study.name}**:\n\n```yaml\n{text.strip()}\n```"


def _quoted(text: str) -> str:
    """Return ``text`` as Markdown that shows it as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-!|" else c for c in text)


@contextmanager
def in_step(
    db: Database, *, clock: Callable[[], float], complain: Callable[[str], None]
) -> Iterator[None]:
    """Keep the dashboard's side in step with ``db`` while the block runs, in a thread.

    Args:
        db: the database.
        clock: gives seconds since 1970.
        complain: told what went wrong; it is tried again at the next look.
    """
    ended = threading.Event()
    sync = Sync(db)

    def work() -> None:
        said = ""
        while not ended.is_set():
            try:
                sync.once(clock())
            except Exception as error:
                # Of drivers, of Optuna, of a study deleted meanwhile: the pages are served anyway.
                told = f"notes and plots are not up to date: {type(error).__name__}: {error}"
                if told != said:
                    complain(told)
                    said = told
            ended.wait(SECONDS)

    thread = threading.Thread(target=work, name="dashboard-sync", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)
