from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_tune.view.progress import StudyProgress
from tests.view.examples import DEFAULT, goal, past


def test_the_best_is_the_first_of_the_best_completed_trials() -> None:
    progress = StudyProgress(goal(), 0.0)
    for number, value in enumerate((0.5, 0.8, 0.8, 0.7)):
        progress.end(past(number, value))
    assert progress.best is not None
    assert progress.best.number == 1


@pytest.mark.parametrize("reason", ["pruned", "diverged", "crashed", "duplicate", "out_of_memory"])
def test_a_trial_that_did_not_complete_is_never_the_best(reason: str) -> None:
    progress = StudyProgress(goal(), 0.0)
    progress.end(past(0, 0.9, reason=reason))
    progress.end(past(1, 0.1))
    assert progress.best is not None
    assert progress.best.number == 1
    assert progress.counts == {reason: 1, "completed": 1}


def test_a_loss_is_best_when_it_is_low() -> None:
    progress = StudyProgress(goal(maximize=False, metric="loss"), 0.0)
    for number, value in enumerate((0.5, 0.2, 0.7)):
        progress.end(past(number, value))
    assert progress.best is not None
    assert progress.best.value == 0.2


def test_the_default_is_known_by_its_point_of_the_space() -> None:
    progress = StudyProgress(goal(), 0.0)
    progress.end(past(0, 0.9))
    assert progress.default_value is None
    progress.end(past(1, 0.6, params=DEFAULT))
    assert progress.default_value == 0.6


def test_a_running_trial_keeps_its_curve_until_it_ends() -> None:
    progress = StudyProgress(goal(), 0.0)
    progress.start(3, 0, DEFAULT, 1, 5.0)
    progress.reach(3, 10, 0.2, {"accuracy": 0.2}, 2.0)
    progress.reach(3, 20, 0.4, {"accuracy": 0.4}, 1.5)
    running = progress.running[3]
    assert (running.progress, running.values, running.train_loss) == (20, [0.2, 0.4], 1.5)
    assert progress.finish(3, "pruned", 0.4, 10.0, DEFAULT, "").progress == 20
    assert progress.running == {}
    assert progress.finish(4, "duplicate", 0.4, 0.0, DEFAULT, "").progress == 100
    assert progress.done == 2


def test_a_late_word_of_a_trial_that_is_gone_is_ignored() -> None:
    progress = StudyProgress(goal(), 0.0)
    progress.reach(3, 10, 0.2, {}, 2.0)
    assert progress.running == {}


def test_the_last_ended_are_the_newest_first() -> None:
    progress = StudyProgress(goal(), 0.0)
    for number in range(30):
        progress.end(past(number))
    assert [trial.number for trial in progress.last_ended(3)] == [29, 28, 27]
    assert progress.last_ended(0) == []
    assert progress.done == 30


def test_time_is_counted_over_restarts() -> None:
    assert StudyProgress(goal(seconds_before=100.0), 5.0).elapsed(25.0) == 120.0


def test_the_time_left_is_unknown_before_the_first_trial_has_ended() -> None:
    progress = StudyProgress(goal(), 0.0)
    progress.start(0, 0, DEFAULT, 1, 0.0)
    assert progress.time_left(3.0) is None


def test_a_trial_to_come_costs_the_mean_of_those_that_ended() -> None:
    progress = StudyProgress(goal(trials=10), 0.0)
    progress.end(past(0, seconds=30.0))
    progress.end(past(1, seconds=6.0, reason="pruned", progress=20))
    progress.end(past(2, seconds=0.0, reason="duplicate"))
    assert progress.time_left(36.0) == pytest.approx(7 * 12.0)


def test_trials_to_come_run_side_by_side_as_those_that_ended_did() -> None:
    progress = StudyProgress(goal(trials=10), 0.0)
    for number in range(4):
        progress.end(past(number, seconds=10.0))
    assert progress.time_left(40.0) == pytest.approx(60.0)
    assert progress.time_left(20.0) == pytest.approx(30.0)  # two at once
    assert progress.time_left(400.0) == pytest.approx(60.0)  # it waited, and does not now


def test_a_running_trial_goes_on_at_its_own_pace_to_where_others_ended() -> None:
    progress = StudyProgress(goal(trials=4), 0.0)
    progress.end(past(0, seconds=10.0, progress=100))
    progress.end(past(1, seconds=2.0, progress=20, reason="pruned"))
    progress.end(past(2, seconds=6.0, progress=60, reason="pruned"))
    progress.start(3, 0, DEFAULT, 1, 100.0)
    assert progress.time_left(100.0) == pytest.approx(6.0)
    progress.reach(3, 40, 0.5, {}, 1.0)
    # 8 s for 40 %; those that came further than 40 % ended at 60 and 100 %.
    assert progress.time_left(108.0) == pytest.approx(8.0)
    progress.reach(3, 100, 0.5, {}, 1.0)
    assert progress.time_left(120.0) == 0.0


def test_trials_of_a_stack_share_the_time_of_their_slot() -> None:
    progress = StudyProgress(goal(trials=24), 0.0)
    for number in range(8):
        progress.start(number, 0, DEFAULT, 1, 0.0)
    # Eight at once take 10 s of a device each: 80 s together. Two were short.
    for number in range(2):
        progress.finish(number, "completed", 0.5, 5.0, DEFAULT, "")
    for number in range(2, 8):
        progress.reach(number, 50, 0.5, {}, 1.0)
    # 40 s for two whole trials and six halves, 16 to come; those that run are at their half.
    assert progress.time_left(40.0) == pytest.approx(16 * 50 / 5 / (50 / 40) + 40.0)


def test_the_last_trials_end_side_by_side() -> None:
    progress = StudyProgress(goal(trials=4), 0.0)
    progress.end(past(0, seconds=40.0))
    for number in range(1, 4):
        progress.start(number, number, DEFAULT, 1, 40.0)
        progress.reach(number, 25 * number, 0.5, {}, 1.0)
    # 30 s for 25 %, 50 % and 75 %.
    assert progress.time_left(70.0) == pytest.approx(90.0)


@pytest.mark.parametrize(("maximize", "target"), [(True, 0.9), (False, 0.95)])
def test_no_trial_is_to_come_once_the_target_is_reached(maximize: bool, target: float) -> None:
    progress = StudyProgress(goal(trials=30, maximize=maximize, target=target), 0.0)
    progress.end(past(0, 0.85 if maximize else 0.99))
    assert progress.time_left(0.0) == pytest.approx(29 * 10.0)
    progress.end(past(1, 0.92))
    assert progress.time_left(0.0) == 0.0
    progress.start(2, 0, DEFAULT, 1, 100.0)
    assert progress.time_left(104.0) == pytest.approx(6.0)


def test_a_budget_of_hours_ends_the_study_sooner() -> None:
    progress = StudyProgress(goal(trials=100, hours=1.0, seconds_before=3500.0), 0.0)
    progress.end(past(0, seconds=60.0))
    assert progress.time_left(40.0) == pytest.approx(60.0)
    assert progress.share_done(40.0) == pytest.approx(3540 / 3600)


def test_a_budget_without_an_amount_has_no_share() -> None:
    progress = StudyProgress(goal(trials=None, target=0.9), 0.0)
    progress.end(past(0))
    assert progress.share_done(10.0) is None
    assert progress.time_left(10.0) is None


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.integers(1, 100)), max_size=30),
    st.integers(0, 100),
    st.floats(0, 1e6),
)
def test_no_share_or_time_is_ever_out_of_range(
    ended: list[tuple[float, int]], reached: int, now: float
) -> None:
    progress = StudyProgress(goal(trials=10), 0.0)
    for number, (seconds, end) in enumerate(ended):
        progress.end(past(number, seconds=seconds, progress=end))
    progress.start(99, 0, DEFAULT, 1, 0.0)
    if reached:
        progress.reach(99, reached, 0.5, {}, 1.0)
    share = progress.share_done(now)
    left = progress.time_left(now)
    assert share is not None
    assert 0 <= share <= 1
    assert left is None or (left >= 0 and math.isfinite(left))
