from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sft_tune.store.runners import Runner
from sft_tune.store.standing import Tally
from sft_tune.view.status import (
    draw_status,
    goal_of,
    owner_in_words,
    past_of,
    progress_of,
    status_json,
)
from tests.view.conftest import Draw
from tests.view.examples import (
    DEFAULT,
    NOW,
    pruned_row,
    rung_row,
    running_row,
    study_row,
    trial_row,
)

ROWS = [
    trial_row(0, 0.80, params=DEFAULT, samples_per_second=40.0),
    trial_row(1, 0.90),
    pruned_row(2, value=0.4, seconds=4.0),
    trial_row(3, None, state="FAIL", reason="crashed", note="RuntimeError: broken\nmore"),
    running_row(4, device="CPU #1", lease_expires=NOW + 30),
]
SINCE = datetime(2026, 3, 1, tzinfo=UTC)
RUNNERS = [
    Runner("box:77:1.5", "box", "local", ["CPU #1", "CPU #2"], SINCE),
    Runner("far:5:1.5", "far", "ray", ["GPU any"], SINCE),
]
RUNGS = {4: [rung_row(4, 20, 0.3, 2.0), rung_row(4, 40, 0.5, 4.0)]}


def test_a_running_study_shows_who_runs_it_and_how_far_it_is(draw_text: Draw) -> None:
    study = study_row(lease_until=NOW + 5)
    goal = goal_of(study, "sqlite:///x.db", DEFAULT, NOW)
    progress = progress_of(goal, ROWS, RUNGS, NOW)
    assert draw_text(draw_status(study, progress, ROWS, RUNNERS, NOW, 80)).splitlines() == [
        "s                                                                 sqlite:///x.db",
        "maximize accuracy on validation                                           2m 05s",
        "",
        "state    running on box (process 77)",
        "trials   ━━━━━━━━━━━━━╸                   4 of 10  about 49s left",
        "runners  box (process 77), 2 slots: trial 4 on CPU #1 (lease for 30s more)",
        "         far (process 5), 1 slot, ray: nothing of this study",
        "speed    115 trials an hour, 40 training examples a second in each",
        "ended    2 completed, 1 pruned, 1 crashed",
        "",
        "best     0.9000  trial 1  +0.1000 on the default's 0.8000",
        "         learning_rate=0.002, model.weights=DEFAULT",
        "",
        "now      trial 4  ━━━━━━             40 %  ▁█  0.5000  4.0s",
        "         learning_rate=0.005, model.weights=DEFAULT",
        "         loss 1.2500  train loss 1.5000",
        "",
        "failures trial 3 crashed: RuntimeError: broken",
    ]


def test_a_study_between_two_trials_of_its_runner_names_it(draw_text: Draw) -> None:
    study = study_row(lease_until=NOW + 5, leases=(("box:77:1.5", NOW + 5),))
    progress = progress_of(goal_of(study, "x", DEFAULT, NOW), ROWS[:4], {}, NOW)
    told = draw_text(draw_status(study, progress, ROWS[:4], RUNNERS, NOW, 80)).splitlines()
    assert told[3] == "state    running on box (process 77)"


def test_an_open_study_waits_while_workers_are_there(draw_text: Draw) -> None:
    study = study_row()
    progress = progress_of(goal_of(study, "x", DEFAULT, NOW), ROWS[:4], {}, NOW)
    told = draw_text(draw_status(study, progress, ROWS[:4], RUNNERS, NOW, 100), 100).splitlines()
    assert told[3] == (
        "state    waiting for a slot of `sft-tune worker`, or `sft-tune start` with its file"
    )
    given_up = draw_status(study, progress, ROWS[:4], RUNNERS, NOW, 100, None, 5)
    assert (
        draw_text(given_up, 100).splitlines()[3].startswith("state    stopped: 5 trials in a row")
    )


def test_trials_that_a_runner_left_are_told(draw_text: Draw) -> None:
    study, left = study_row(), [running_row(4, lease_owner=None, lease_expires=None)]
    rows = [*ROWS[:4], *left, running_row(5, lease_expires=NOW - 1, last_progress=None)]
    progress = progress_of(goal_of(study, "x", DEFAULT, NOW), rows, {}, NOW)
    told = draw_text(draw_status(study, progress, rows, [], NOW, 80))
    line = "waiting  trial 4 at 40 %, trial 5 at 0 %: interrupted, the next runner goes on"
    assert line in told.splitlines()


def test_the_time_of_a_study_that_runs_goes_on_between_counts() -> None:
    study = study_row(lease_until=NOW + 5, last_active=NOW - 12.0)
    assert goal_of(study, "x", DEFAULT, NOW).seconds_before == 137.0
    assert goal_of(study._replace(lease_until=None), "x", DEFAULT, NOW).seconds_before == 125.0
    assert goal_of(study._replace(last_active=NOW + 3), "x", DEFAULT, NOW).seconds_before == 125.0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ended": "trials"}, "finished: every trial of the budget is done"),
        ({"ended": "hours"}, "finished: the budget's time is used"),
        ({"ended": "something new"}, "finished: something new"),
        ({}, "stopped; `sft-tune start` with its file goes on"),
        (
            {"wanted": "stopped"},
            "stopped; `sft-tune resume s` or `sft-tune start` with its file lets",
        ),
        ({"managed": False}, "Optuna's alone"),
    ],
)
def test_a_study_that_nobody_runs_says_why(
    draw_text: Draw, changes: dict[str, object], text: str
) -> None:
    study = study_row(**changes)
    rows = ROWS[:4]
    progress = progress_of(goal_of(study, "x", DEFAULT, NOW), rows, {}, NOW)
    assert text in draw_text(draw_status(study, progress, rows, [], NOW, 80))


def test_a_study_that_was_given_up_says_so_and_one_without_a_file_names_none(
    draw_text: Draw,
) -> None:
    study = study_row(source="/home/me/<mapping>")
    progress = progress_of(goal_of(study, "x", DEFAULT, NOW), ROWS[:4], {}, NOW)

    def state(failed: int | None) -> str:
        told = draw_text(
            draw_status(study, progress, ROWS[:4], [], NOW, 200, None, failed), 200
        ).splitlines()
        return told[3].removeprefix("state    ")

    assert state(None) == "stopped; the program that called `tune` goes on"
    assert state(5) == (
        "stopped: 5 trials in a row failed (budget.failures); once that is mended, the program "
        "that called `tune` goes on"
    )
    assert study_row(source="/home/me/s.yaml").has_file


def test_a_program_reads_the_same_as_a_person() -> None:
    study = study_row()
    progress = progress_of(goal_of(study, "x", DEFAULT, NOW), ROWS, RUNGS, NOW)
    told = status_json(study, progress, NOW)
    assert told["best"]["number"] == 1
    assert told["default_value"] == 0.80
    assert told["reasons"] == {"completed": 2, "pruned": 1, "crashed": 1}
    assert [trial["number"] for trial in told["running_trials"]] == [4]
    assert told["running_trials"][0]["progress"] == 40
    nothing = status_json(study, progress_of(goal_of(study, "x", {}, NOW), [], {}, NOW), NOW)
    assert (nothing["best"], nothing["seconds_left"]) == (None, None)


def test_a_counted_study_reads_the_same_as_its_rows(draw_text: Draw) -> None:
    study = study_row(lease_until=NOW + 5)
    goal = goal_of(study, "x", DEFAULT, NOW)
    seconds = [row.seconds or 0.0 for row in ROWS]
    tallies = [
        Tally("completed", None, 2, seconds[0] + seconds[1], 40.0 * seconds[0], seconds[0]),
        Tally("pruned", ROWS[2].last_progress, 1, seconds[2], 0.0, 0.0),
        Tally("crashed", ROWS[3].last_progress, 1, seconds[3], 0.0, 0.0),
    ]
    drawn = [
        draw_text(
            draw_status(
                study, progress_of(goal, ROWS, RUNGS, NOW, given), ROWS, RUNNERS, NOW, 80, given
            )
        )
        for given in (None, tallies)
    ]
    assert drawn[0] == drawn[1]


def test_a_running_trial_without_a_rung_counts_from_its_start() -> None:
    study = study_row()
    progress = progress_of(goal_of(study, "x", DEFAULT, NOW), ROWS, {}, NOW)
    started = ROWS[4].started
    assert started is not None
    assert progress.running[4].since == started.timestamp()


def test_a_trial_that_is_optunas_alone_is_told_by_its_state() -> None:
    assert past_of(trial_row(0, reason=None, phase=None)).reason == "completed"
    failed = trial_row(0, None, state="FAIL", reason=None, last_progress=None)
    assert (past_of(failed).reason, past_of(failed).progress) == ("crashed", 0)
    assert past_of(trial_row(0, reason="pruned", duplicate_of=3)).reason == "duplicate"


@pytest.mark.parametrize(
    ("owner", "text"),
    [
        ("box:77:1.5", "box (process 77)"),
        ("a:b:77:1.5", "a:b (process 77)"),
        ("me", "me"),
        (None, "an unknown machine"),
    ],
)
def test_an_owner_is_a_machine_and_a_process(owner: str | None, text: str) -> None:
    assert owner_in_words(owner) == text
