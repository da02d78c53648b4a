from __future__ import annotations

from sft_tune.view.trial import draw_best, draw_trial
from tests.view.conftest import Draw
from tests.view.examples import DEFAULT, NOW, rung_row, running_row, study_row, trial_row

CONFIG = {"model": {"name": "builtin:convnet"}, "training": {"learning_rate": 2e-3, "epochs": 3}}


def test_the_best_trial_on_a_page(draw_text: Draw) -> None:
    row = trial_row(1, 0.9, config=CONFIG, params={"learning_rate": 2e-3}, horizon=120)
    assert draw_text(draw_best(study_row(), row, DEFAULT)).splitlines() == [
        "accuracy 0.9000  trial 1 of s",
        "validation   accuracy 0.9000, loss 1.0000",
        "best rung    at 90 % of its 120 steps",
        "trained for  10s",
        "weights      /runs/trial-00001/best.safetensors",
        "",
        "searched       value  default",
        "learning_rate  0.002   0.0001",
        "",
        "fixed",
        "model.name=builtin:convnet, epochs=3",
    ]


def test_of_another_program_the_settings_are_shown_and_steps_are_no_percent(
    draw_text: Draw,
) -> None:
    foreign = {"phase": None, "reason": None, "checkpoint": None, "best_progress": None}
    row = trial_row(1, 0.9, params={"rate": 0.5}, metrics={}, last_progress=7, **foreign)
    row = row._replace(seconds=None, started=row.started, ended=row.ended)
    best = draw_text(draw_best(study_row(managed=False), row, None)).splitlines()
    assert best[0] == "accuracy 0.9000  trial 1 of s"
    assert best[1] == "trained for  1m 00s"
    assert best[2:] == ["", "searched  value", "rate        0.5"]
    text = draw_text(draw_trial(study_row(managed=False), row, [], None, None, {}, NOW), 100)
    assert "last step  7" in text and "rate        0.5" in text and "%" not in text


def test_a_trial_on_a_page_has_its_rungs_its_errors_and_its_files(draw_text: Draw) -> None:
    files = {"log.txt": 5}
    row = trial_row(
        3,
        None,
        state="FAIL",
        reason="crashed",
        note="the worker was killed by SIGKILL",
        error="attempt 1: killed\n\nattempt 2: killed",
        attempts=2,
        seed=7,
        config=CONFIG,
    )
    rungs = [rung_row(3, 10, 0.2, 1.0), rung_row(3, 20, 0.4, 2.0)]
    text = draw_text(draw_trial(study_row(), row, rungs, DEFAULT, "s3://b/t", files, NOW), 100)
    assert text.startswith("trial 3 of s: crashed, the worker was killed by SIGKILL\n")
    assert "curve     ▁█" in text
    assert "attempts  2" in text
    assert "attempt 1: killed\n\nattempt 2: killed" in text
    assert "files in s3://b/t" in text
    assert "log.txt" in text
    assert "5 B" in text


def test_a_running_trial_says_who_runs_it(draw_text: Draw) -> None:
    text = draw_text(draw_trial(study_row(), running_row(4), [], None, None, {}, NOW))
    assert text.startswith("trial 4 of s: running\n")
    assert "run by    box (process 77)" in text
