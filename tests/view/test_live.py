from __future__ import annotations

import io

import pytest
from rich.console import Console

from sft_tune.view.live import LiveScreen, draw
from sft_tune.view.progress import StudyProgress
from tests.view.conftest import Draw
from tests.view.examples import DEFAULT, goal, past


def full_progress() -> StudyProgress:
    progress = StudyProgress(goal(hours=2.0, seconds_before=600.0), 0.0)
    progress.end(past(0, 0.8621, params=DEFAULT, seconds=20.0))
    progress.end(past(1, 0.41, reason="pruned", progress=20, seconds=4.0))
    progress.end(past(2, 0.8933, seconds=24.0))
    progress.end(past(3, None, reason="crashed", progress=0, seconds=2.0))
    progress.start(4, 0, {**DEFAULT, "learning_rate": 3.2e-5}, 2, 50.0)
    for reached, value in ((10, 0.3), (20, 0.5), (30, 0.74)):
        metrics = {"loss": 1.2, "accuracy": value, "f1_macro": 0.48}
        progress.reach(4, reached, value, metrics, 1.1)
    return progress


def test_the_screen_shows_the_study_its_budget_its_best_and_its_trials(draw_text: Draw) -> None:
    assert draw_text(draw(full_progress(), 62.0, 80, 40)).splitlines() == [
        "",
        " s                                                               sqlite:///x.db",
        " maximize accuracy on validation                              11m 02s of 2h 00m",
        "",
        " trials   ━━━━━━━━━━━━━                    4 of 10  about 1m 40s left",
        "",
        " best     0.8933  trial 2  +0.0312 on the default's 0.8621",
        "          learning_rate=0.003, model.weights=DEFAULT",
        "",
        " now      trial 4, attempt 2  ━━━━╸              30 %  ▁▄█  0.7400  12s",
        "          learning_rate=3.2e-05, model.weights=DEFAULT",
        "          loss 1.2000  f1_macro 0.4800  train loss 1.1000",
        "",
        " ended    3  crashed at 0 %            –  2.0s  learning_rate=0.004",
        "          2  completed       best 0.8933   24s  learning_rate=0.003",
        "          1  pruned at 20 %  best 0.4100  4.0s  learning_rate=0.002",
        "          0  completed       best 0.8621   20s  the default configuration",
        "",
        " Ctrl-C stops after a checkpoint; the same command goes on later.",
    ]


def test_the_screen_of_a_study_that_begins_has_no_empty_parts(draw_text: Draw) -> None:
    text = draw_text(draw(StudyProgress(goal(), 0.0), 0.0, 80, 24))
    assert "0 of 10" in text
    assert "best" not in text
    assert "ended" not in text


def test_a_best_that_is_the_default_claims_no_gain(draw_text: Draw) -> None:
    progress = StudyProgress(goal(), 0.0)
    progress.end(past(0, 0.8621, params=DEFAULT))
    assert "0.8621  trial 0  the default configuration" in draw_text(draw(progress, 1.0, 80, 24))


def test_a_stop_that_is_under_way_is_said_in_place_of_how_to_stop(draw_text: Draw) -> None:
    text = draw_text(draw(full_progress(), 62.0, 80, 40, "stopping: the trial is saved first"))
    assert "stopping: the trial is saved first" in text
    assert "Ctrl-C stops" not in text


def test_several_slots_are_told_apart(draw_text: Draw) -> None:
    progress = full_progress()
    progress.start(5, 1, DEFAULT, 1, 60.0)
    text = draw_text(draw(progress, 62.0, 80, 40))
    assert text.index("slot 0") < text.index("slot 1")


def test_many_trials_on_one_slot_have_a_line_each(draw_text: Draw) -> None:
    progress = full_progress()
    for number in range(20, 27):
        progress.start(number, 0, DEFAULT, 1, 60.0)
    text = draw_text(draw(progress, 62.0, 80, 24))
    assert all(f"trial {number}" in text for number in range(20, 27))
    assert text.count("slot 0") == len(progress.running)
    assert len(text.splitlines()) <= 24


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("height", [10, 20, 40])
def test_the_screen_fits_every_terminal(draw_text: Draw, width: int, height: int) -> None:
    progress = full_progress()
    for number in range(10, 20):
        progress.end(past(number))
    text = draw_text(draw(progress, 62.0, width, height), width)
    ended = [line for line in text.splitlines() if "completed" in line]
    assert len(ended) <= max(0, height - 15)


def test_the_live_screen_follows_what_it_hears_and_leaves_notices_behind() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, height=30, force_terminal=True, color_system=None)
    now = [0.0]
    with LiveScreen(goal(), console, clock=lambda: now[0]) as screen:
        now[0] = 5.0
        screen.started(0, slot=0, params=DEFAULT, attempt=1)
        screen.rung(
            0, progress=50, value=0.5, metrics={"accuracy": 0.5}, train_loss=1.0, pruned=False
        )
        screen.notice("the worker was killed by SIGKILL; attempt 2 of 3 begins")
        now[0] = 14.0
        screen.ended(
            0,
            reason="completed",
            value=0.8,
            seconds=9.0,
            params=DEFAULT,
            note="",
            leads=True,
        )
        screen.stopping("stopping now")
        console.print(screen)
    text = file.getvalue()
    assert "the worker was killed by SIGKILL; attempt 2 of 3 begins" in text
    assert "stopping now" in text
    assert "0.8000  trial 0" in text
    assert screen.progress.done == 1
    assert screen.progress.elapsed(14.0) == 9.0  # not what came before the first trial
