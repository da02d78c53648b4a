"""What went wrong with a trial, as people read it."""

from __future__ import annotations

import io
import json
from typing import Any

from rich.console import Console

from sft_tune.spec.faults import Fault, to_flags
from sft_tune.view.tables import trials_table
from sft_tune.view.trial import draw_trial
from tests.view.examples import NOW, rung_row, study_row, trial_row

FAULT = Fault("overfitting", 40, "validation loss rose from 0.6 at 40 % to 1.3 at 100 %")
FLAGS = json.dumps({"faults": to_flags([FAULT])})


def text_of(drawn: Any) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(drawn)
    return console.export_text()


def test_a_trial_s_page_has_the_evidence() -> None:
    rung = rung_row(3, 50, 0.5, 1.5)._replace(
        gradient_norm_max=12.5, update_ratio=2.1e-3, samples_per_second=1234.5, memory=2_500_000
    )
    drawn = draw_trial(study_row(), trial_row(3, flags_json=FLAGS), [rung], None, None, {}, NOW)
    text = text_of(drawn)
    assert "overfitting since 40 %" in text and FAULT.evidence in text
    for number in ("12.5", "0.0021", "1234", "2.5 MB"):
        assert number in text, number


def test_rungs_that_were_not_watched_have_no_table_of_it() -> None:
    drawn = draw_trial(study_row(), trial_row(3), [rung_row(3, 50, 0.5, 1.5)], None, None, {}, NOW)
    text = text_of(drawn)
    assert "update" not in text and "what went wrong" not in text


def test_the_list_of_trials_names_it_in_a_word() -> None:
    diverged = json.dumps({"faults": to_flags([Fault("diverging", 10, "loss became nan")])})
    rows = [
        trial_row(1, flags_json=FLAGS),
        trial_row(2, flags_json=json.dumps({"micro_batch": 4})),
        trial_row(3, None, reason="diverged", flags_json=diverged),
    ]
    console = Console(width=200)
    lines = text_of(trials_table(rows, console, metric="accuracy", now=NOW)).splitlines()
    assert "completed, overfitting" in lines[1]
    assert "completed  " in lines[2]
    assert "diverged  " in lines[3] and "diverging" not in lines[3]
