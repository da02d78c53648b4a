"""`sft-tune show`: one trial, from its configuration to its end."""

from __future__ import annotations

import time

from sft_tune.cli.lookup import default_point, living, living_trials, one_trial
from sft_tune.cli.options import AsJson, Number, Storage, StudyName
from sft_tune.cli.output import console, print_json
from sft_tune.session import open_database


def show(
    study: StudyName, number: Number, as_json: AsJson = False, storage: Storage = None
) -> None:
    """Show one trial, from its settings to its end.

    Example: sft-tune show my-study 7
    """
    from sft_tune.store.finalist_rows import finalist_rows
    from sft_tune.store.reads import evaluation_rows, study_row

    with open_database(storage) as db:
        found = living(study_row(db, study))
        (row,) = living_trials(found, [one_trial(db, study, number)])
        rungs = evaluation_rows(db, study, number)
        default = default_point(db, found)
        runs = [run for run in finalist_rows(db, study) if run.number == number and run.error]
    from sft_tune.run.retention import trial_place
    from sft_tune.trial.files import files_of
    from sft_tune.view.trial import draw_trial

    place = None if found.artifacts is None else trial_place(found.artifacts, number)
    files = {} if place is None else files_of(place).sizes()
    if as_json:
        from sft_tune.view.records import evaluation_json, trial_json

        print_json(
            {
                "study": study,
                "metric": found.metric,
                **trial_json(row),
                "config": row.config,
                "error": row.error,
                "confirmation_errors": {str(run.seed): run.error for run in runs},
                "rungs": [evaluation_json(rung) for rung in rungs],
                "files": [f"{place}/{name}" for name in files],
            }
        )
        return
    errors = {run.seed: run.error or "" for run in runs}
    console().print(draw_trial(found, row, rungs, default, place, files, time.time(), errors))
