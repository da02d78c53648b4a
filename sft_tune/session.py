"""A study at work, and who watches it: where `run` and `view` meet, for `cli` and `api` alike."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from sft_tune.errors import StudyNotFoundError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sft_tune.run.events import Event, Notify
    from sft_tune.run.exported import Exported, How
    from sft_tune.spec.load import LoadedStudy
    from sft_tune.spec.study import StudySpec
    from sft_tune.store.database import Database
    from sft_tune.store.rows import TrialRow
    from sft_tune.view.comparison import Comparison
    from sft_tune.view.lines import PlainLines
    from sft_tune.view.progress import Goal, Watcher


@contextmanager
def open_database(storage: str | None, *, create: bool = False) -> Iterator[Database]:
    """Open the database that ``storage`` (or the environment, or the default) names; close it."""
    from sft_tune.store.database import Database

    db = Database.open(storage, create=create)
    try:
        yield db
    finally:
        db.dispose()


def with_budget(loaded: LoadedStudy, *, trials: int | None, hours: float | None) -> LoadedStudy:
    """Return ``loaded`` with another budget where ``trials`` or ``hours`` is given.

    Raises:
        UserError: for a budget that no study file may have either.
    """
    from pydantic import ValidationError

    from sft_tune.spec.checks import first_problem
    from sft_tune.spec.search import BudgetSpec

    given = {name: v for name, v in (("trials", trials), ("hours", hours)) if v is not None}
    if not given:
        return loaded
    try:
        budget = BudgetSpec.model_validate({**loaded.spec.budget.model_dump(), **given})
    except ValidationError as error:
        raise UserError(f"budget.{first_problem(BudgetSpec, error)}") from None
    return replace(loaded, spec=loaded.spec.model_copy(update={"budget": budget}))


def forward_to(watcher: Watcher) -> Notify:
    """Return what tells ``watcher`` the events of a dispatcher."""
    from sft_tune.run.events import Notice, RungReached, TrialEnded, TrialStarted

    def notify(event: Event) -> None:
        match event:
            case TrialStarted():
                watcher.started(
                    event.number, slot=event.slot, params=event.params, attempt=event.attempt
                )
            case RungReached():
                watcher.rung(
                    event.number,
                    progress=event.progress,
                    value=event.value,
                    metrics=event.metrics,
                    train_loss=event.train_loss,
                    pruned=event.pruned,
                    faults=event.faults,
                )
            case TrialEnded():
                watcher.ended(
                    event.number,
                    reason=event.reason,
                    value=event.value,
                    seconds=event.seconds,
                    params=event.params,
                    note=event.note,
                    leads=event.leads,
                    faults=event.faults,
                )
            case Notice():
                watcher.notice(event.text)

    return notify


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keep Optuna from logging what it does with the database; warnings still come."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def watching(spec: StudySpec, db: Database, *, plain: bool = False) -> Iterator[Watcher]:
    """Give a watcher that knows where the study stands; a live screen on a terminal.

    Args:
        spec: the study.
        db: its database.
        plain: write lines on a terminal too.
    """
    from rich.console import Console

    from sft_tune.view.lines import PlainLines
    from sft_tune.view.live import LiveScreen
    from sft_tune.view.status import others_of, replay

    goal, rows = _standing(spec, db)
    others = others_of(db, spec.name, rows)
    console = Console(highlight=False, markup=False, emoji=False)
    if plain or not console.is_terminal or console.is_dumb_terminal:
        lines = PlainLines(goal, sys.stdout, others=others)
        replay(lines.progress, rows)
        lines.header()
        yield lines
        return
    screen = LiveScreen(goal, console, others=others)
    replay(screen.progress, rows)
    with screen:
        yield screen


def worker_lines(study: str, db: Database) -> PlainLines:
    """Return what writes of ``study`` as one of those that a worker serves: not of every rung."""
    from sft_tune.store.records import find_study
    from sft_tune.view.lines import PlainLines
    from sft_tune.view.status import others_of, replay

    goal, rows = _standing(find_study(db, study).spec, db)
    others = others_of(db, study, rows)
    lines = PlainLines(goal, sys.stdout, others=others, prefix=f"{study}: ", rungs=False)
    replay(lines.progress, rows)
    return lines


def _standing(spec: StudySpec, db: Database) -> tuple[Goal, list[TrialRow]]:
    from sft_tune.spec.config import default_params
    from sft_tune.spec.plan import make_plan
    from sft_tune.store.reads import study_row, trial_rows
    from sft_tune.store.urls import redact
    from sft_tune.view.progress import Goal

    try:
        rows = trial_rows(db, spec.name)
        known = study_row(db, spec.name)
        before, extra = known.active_at(time.time()) or 0.0, known.extra_trials
    except StudyNotFoundError:
        rows, before, extra = [], 0.0, 0
    limit = make_plan(spec).limit(spec.budget)
    goal = Goal(
        study=spec.name,
        metric=spec.objective.metric,
        maximize=spec.direction == "maximize",
        storage=redact(db.url),
        default=default_params(spec),
        trials=None if limit is None else limit + extra,
        hours=spec.budget.hours,
        target=spec.budget.target,
        seconds_before=before,
    )
    return goal, rows


def way_of_export(trial: int | None, *, refit: bool, soup: bool) -> How:
    """Return where the weights of an export come from.

    Raises:
        UserError: for wishes that exclude each other.
    """
    if soup and (refit or trial is not None):
        other = "a refit trains one configuration" if refit else "a soup begins with the best trial"
        raise UserError(f"a soup cannot be combined with that: {other}; leave one out")
    return "refit" if refit else "soup" if soup else "trial"


def export_study(
    db: Database,
    name: str,
    folder: Path,
    *,
    trial: int | None = None,
    how: How = "trial",
    onnx: bool = False,
    force: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Export the best trial of the study ``name`` (or ``trial``) to ``folder``, with its card.

    See `sft_tune.run.export.export_trial`.

    Raises:
        StudyNotFoundError: there is no such study or trial, or none has completed.
    """
    from sft_tune.run.export import export_trial
    from sft_tune.spec.objective import resolve_direction
    from sft_tune.store.finalist_rows import finalist_rows
    from sft_tune.store.reads import best_row, evaluation_rows, trial_rows
    from sft_tune.store.records import find_study
    from sft_tune.view.model_card import make_card
    from sft_tune.view.model_card_markdown import card_markdown

    record = find_study(db, name)
    rows = trial_rows(db, name)
    best = best_row(db, name)
    number = trial if trial is not None else None if best is None else best.number
    row = next((one for one in rows if one.number == number), None)
    if row is None:
        what = "completed trial yet" if trial is None else f"trial {trial}"
        raise StudyNotFoundError(
            f"study {name!r} has no {what}; `sft-tune trials {name}` lists those there are"
        )
    sign = -1 if resolve_direction(record.spec.objective) == "maximize" else 1
    others = [
        one
        for one in rows
        if one.state == "COMPLETE"
        and one.value is not None
        and one.checkpoint is not None
        and one.duplicate_of is None
        and one.number != row.number
    ]
    others.sort(key=lambda one: (sign * (one.value or 0.0), one.number))

    def describe(exported: Exported) -> str:
        rungs = evaluation_rows(db, name, exported.number)
        runs = finalist_rows(db, name)
        return card_markdown(make_card(record, rows, rungs, runs, exported.to_json()))

    return export_trial(
        *(record, row, others, folder),
        how=how,
        onnx=onnx,
        force=force,
        describe=describe,
        notify=notify,
    )


def compare_studies(studies: Sequence[str], storage: str | None) -> Comparison:
    """Return the studies side by side; see `sft_tune.api.compare`.

    Raises:
        UserError: fewer than two, one twice, or not of one objective.
        StudyNotFoundError: there is no such study.
    """
    from sft_tune.store.urls import redact
    from sft_tune.view.comparison import compared
    from sft_tune.view.judgement import standings_of
    from sft_tune.view.material import gather
    from sft_tune.view.words import short_path

    if len(studies) < 2:
        raise UserError(
            f"a comparison needs at least two studies (got {len(studies)}); name another; "
            "`sft-tune compare STUDY --by SETTING` compares the values of one setting"
        )
    places, materials = [], []
    for study in studies:
        url, name = place_of(study, storage)
        with open_database(url) as db:
            places.append((name, short_path(redact(db.url).removeprefix("sqlite:///"))))
            materials.append(gather(db, name, time.time(), importances=False))
    twice = [name for place, (name, _) in enumerate(places) if places[place] in places[:place]]
    if twice:
        raise UserError(f"study {twice[0]!r} is given twice; each is compared with the others once")
    names = [name for name, _ in places]
    labels = [f"{n} ({where})" if names.count(n) > 1 else n for n, where in places]
    return compared(materials, labels, [standings_of(one) for one in materials])


def place_of(study: str, storage: str | None) -> tuple[str | None, str]:
    """Return database and name of ``study``, a name or ``DATABASE#NAME`` (a .db file or a URL)."""
    url, mark, name = study.rpartition("#")
    if mark and ("://" in url or url.endswith((".db", ".sqlite", ".sqlite3"))):
        return url, name
    return storage, study
