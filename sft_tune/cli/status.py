"""`sft-tune status`: how far a study is, whoever runs it."""

from __future__ import annotations

import time

from sft_tune.cli.advise import BRIEFLY, EARLIEST, LATEST, advice_of
from sft_tune.cli.lookup import default_point, living, living_trials, standings_of
from sft_tune.cli.options import AsJson, Storage, StudyName
from sft_tune.cli.output import console, print_json
from sft_tune.session import open_database


def status(study: StudyName, as_json: AsJson = False, storage: Storage = None) -> None:
    """Show how far a study is, and who runs it.

    Example: sft-tune status my-study
    """
    from sft_tune.run.owner import is_dead
    from sft_tune.store.reads import evaluation_rows, study_row, trial_rows
    from sft_tune.store.runners import live_runners
    from sft_tune.store.standing import failed_in_a_row, standing
    from sft_tune.store.urls import redact
    from sft_tune.view.parts import WIDEST
    from sft_tune.view.status import draw_status, goal_of, progress_of, status_json

    now = time.time()
    with open_database(storage) as db:
        found, counted = living(study_row(db, study)), standing(db, study)
        if counted is not None and counted.total != found.trials:
            counted = None  # Optuna has trials that are not ours.
        tallies = None if counted is None else counted.tallies
        rows = living_trials(found, trial_rows(db, study) if counted is None else counted.rows)
        alive = [row.number for row in rows if row.state == "RUNNING" and row.is_alive(now)]
        rungs = {number: evaluation_rows(db, study, number) for number in alive}
        runners = [r for r in live_runners(db, now) if not is_dead(r.owner)]
        goal = goal_of(found, redact(db.url), default_point(db, found) or {}, now)
        progress = progress_of(goal, rows, rungs, now, tallies)
        drawn_here = found.managed and not as_json
        advised = drawn_here and EARLIEST <= progress.done <= LATEST
        stopped = not found.is_running(now) and (found.ended, found.wanted) == (None, None)
        failed = failed_in_a_row(db, study) if stopped else None
        advice = advice_of(db, study) if advised else []
        confirmed = standings_of(db, study) if drawn_here else None
    if as_json:
        from sft_tune.view.records import study_json

        serving = [r._asdict() for r in runners]
        print_json(
            {**study_json(found, now), **status_json(found, progress, now), "runners": serving}
        )
        return
    out = console()
    width = min(out.width, WIDEST)
    told = ""
    if confirmed is not None:
        from sft_tune.view.finalists_words import fresh_in_words

        told = fresh_in_words(confirmed)
    drawn = draw_status(found, progress, rows, runners, now, width, tallies, failed, told)
    out.print(drawn, width=width)
    if advice:
        from sft_tune.view.advice import draw_advice

        out.print("\nadvice")
        out.print(draw_advice(advice, most=BRIEFLY), width=width)
    elif found.managed and progress.done > LATEST:
        out.print(f"\nadvice    `sft-tune advise {study}` reads all {progress.done} trials")
