"""`sft-tune advise`: what to change next, from what a study has shown."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sft_tune.cli.options import AsJson, Storage, StudyName
from sft_tune.cli.output import console, print_json
from sft_tune.session import open_database

if TYPE_CHECKING:
    from sft_tune.store.database import Database
    from sft_tune.view.advice import Advice

BRIEFLY = 3
"""So many pieces at the end of `start` and with `status`; `advise` prints all."""
EARLIEST = 8
"""Ended trials before `status` gives advice: before, it need not wait for numpy to be loaded."""
LATEST = 500
"""Ended trials from which `status` names `advise` in place of it: it would take seconds."""


def advise(study: StudyName, as_json: AsJson = False, storage: Storage = None) -> None:
    """Say what to change next, with the numbers that say so and the line of the study file.

    Example: sft-tune advise my-study
    """
    with open_database(storage) as db:
        found = advice_of(db, study)
    from sft_tune.view.advice import advice_json, draw_advice

    if as_json:
        print_json({"study": study, "advice": advice_json(found)})
    elif found:
        console().print(draw_advice(found))
    else:
        print(f"nothing stands out from chance in study {study}")


def advice_of(db: Database, study: str) -> list[Advice]:
    """Return the advice that the study's trials, rungs and finalists support.

    Raises:
        StudyNotFoundError: there is no such study.
    """
    from sft_tune.view import judgement
    from sft_tune.view.material import gather

    return judgement.advice_of(gather(db, study, time.time(), importances=False))


def print_briefly(db: Database, study: str) -> None:
    """Print the first pieces of advice, after an empty line; nothing where there is none."""
    found = advice_of(db, study)
    if not found:
        return
    from sft_tune.view.advice import draw_advice

    print("\nadvice")
    console().print(draw_advice(found, most=BRIEFLY))
