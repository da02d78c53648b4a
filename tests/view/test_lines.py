from __future__ import annotations

import io
from typing import Any

import pytest

from sft_tune.view.lines import PlainLines
from sft_tune.view.progress import Past
from tests.view.examples import DEFAULT, goal, past


class Watched:
    def __init__(self, **changes: Any) -> None:
        self.file = io.StringIO()
        self.now = 0.0
        self.lines = PlainLines(
            goal(**changes), self.file, clock=lambda: self.now, stamp=lambda: "12:00:00"
        )

    def said(self) -> list[str]:
        text = self.file.getvalue()
        self.file.seek(0)
        self.file.truncate()
        assert all(line.startswith("12:00:00 ") for line in text.splitlines())
        return [line.removeprefix("12:00:00 ") for line in text.splitlines()]


def end(watched: Watched, number: int, **changes: Any) -> None:
    values: dict[str, Any] = {
        "reason": "completed",
        "value": 0.8621,
        "seconds": 4.1,
        "params": DEFAULT,
        "note": "",
        "leads": False,
    }
    watched.lines.ended(number, **{**values, **changes})


def rung(watched: Watched, number: int, progress: int, after: float = 0.0) -> None:
    watched.now += after
    metrics = {"loss": 1.2, "accuracy": 0.5}
    watched.lines.rung(
        number, progress=progress, value=0.5, metrics=metrics, train_loss=1.4, pruned=False
    )


def test_the_header_says_what_is_run() -> None:
    watched = Watched()
    watched.lines.header()
    assert watched.said() == ["study s: maximize accuracy on validation, in sqlite:///x.db"]
    watched.lines.started(0, slot=0, params=DEFAULT, attempt=1)
    assert len(watched.said()) == 1


@pytest.mark.parametrize("first", ["started", "ended"])
def test_a_study_is_said_to_go_on_when_it_does(first: str) -> None:
    watched = Watched()
    watched.lines.progress.end(past(0))
    watched.lines.header()
    watched.lines.notice("saved")
    assert watched.said()[1:] == ["saved"]
    for number in (1, 2):
        if first == "started":
            watched.lines.started(number, slot=0, params=DEFAULT, attempt=1)
        else:
            end(watched, number)
    said = watched.said()
    assert said[0] == "continued after 1 trial"
    assert [line[:7] for line in said[1:]] == ["trial 1", "trial 2"]


def test_quick_rungs_are_told_every_ten_seconds_of_each_trial() -> None:
    watched = Watched()
    watched.lines.started(0, slot=0, params=DEFAULT, attempt=1)
    watched.lines.started(1, slot=1, params=DEFAULT, attempt=1)
    assert len(watched.said()) == 2
    rung(watched, 0, 10, after=9.9)
    assert watched.said() == []
    assert watched.lines.progress.running[0].progress == 10
    rung(watched, 0, 20, after=0.1)
    rung(watched, 1, 10)
    rung(watched, 0, 30, after=9.9)
    rung(watched, 0, 40, after=0.1)
    assert [line.partition(":")[0] for line in watched.said()] == [
        "trial 0 at 20 %",
        "trial 1 at 10 %",
        "trial 0 at 40 %",
    ]


def test_each_event_is_a_line() -> None:
    watched = Watched()
    watched.lines.started(0, slot=0, params=DEFAULT, attempt=1)
    rung(watched, 0, 50, after=10.0)
    end(watched, 0, leads=True)
    watched.lines.notice("trial 0 was taken over by another runner")
    assert watched.said() == [
        "trial 0 started: learning_rate=0.0001, model.weights=DEFAULT",
        "trial 0 at 50 %: accuracy 0.5000, loss 1.2000, train loss 1.4000",
        "trial 0 completed with accuracy 0.8621 in 4.1s, the best so far (1 of 10, about 37s left)",
        "trial 0 was taken over by another runner",
    ]


def test_a_trial_that_ended_early_says_where_and_why() -> None:
    watched = Watched(trials=None)
    watched.lines.started(4, slot=0, params={}, attempt=2)
    watched.now = 10.0
    watched.lines.rung(4, progress=20, value=0.1, metrics={}, train_loss=1.0, pruned=True)
    end(watched, 4, reason="pruned", value=0.1, note="at 20 % of its horizon")
    end(watched, 5, reason="diverged", value=None, note="loss became nan at step 3 of 9")
    end(watched, 6, reason="duplicate", seconds=0.0, note="the same configuration as trial 4")
    assert watched.said() == [
        "trial 4 taken up again (attempt 2): the defaults",
        "trial 4 at 20 %: accuracy 0.1000, train loss 1.0000",
        "trial 4 pruned at 20 %, its best accuracy 0.1000 in 4.1s (1 done)",
        "trial 5 diverged in 4.1s: loss became nan at step 3 of 9 (2 done)",
        "trial 6 duplicate with accuracy 0.8621: the same configuration as trial 4 (3 done)",
    ]


def test_what_holds_of_every_trial_is_told_once() -> None:
    watched = Watched(trials=None)
    for number, note in enumerate(["the backbone is run", "the backbone is run", "not compiled"]):
        end(watched, number, note=note)
    for number in (3, 4):
        end(watched, number, reason="duplicate", seconds=0.0, note="the same as trial 0")
    assert [line.partition(": ")[2] for line in watched.said()] == [
        "the backbone is run (1 done)",
        "",
        "not compiled (3 done)",
        "the same as trial 0 (4 done)",
        "the same as trial 0 (5 done)",
    ]


def test_the_count_and_the_time_left_are_those_of_the_study_whoever_runs_it() -> None:
    ended: list[Past] = [past(1, 0.9, seconds=6.0), past(2, 0.3, reason="pruned", seconds=2.0)]
    watched = Watched()
    asked = []

    def others(number: int) -> list[Past]:
        asked.append(number)
        return [ended.pop(0)] if ended else []

    watched.lines = PlainLines(
        goal(),
        watched.file,
        clock=lambda: 100.0,
        stamp=lambda: "12:00:00",
        others=others,
        prefix="s: ",
        rungs=False,
    )
    watched.lines.started(0, slot=0, params=DEFAULT, attempt=1)
    rung(watched, 0, 50, after=20.0)
    end(watched, 0, seconds=4.0)
    end(watched, 3, seconds=4.0)
    end(watched, 4, seconds=4.0)
    assert watched.said() == [
        "s: trial 0 started: learning_rate=0.0001, model.weights=DEFAULT",
        "s: trial 0 completed with accuracy 0.8621 in 4.0s (2 of 10, about 40s left)",
        "s: trial 3 completed with accuracy 0.8621 in 4.0s (4 of 10, about 24s left)",
        "s: trial 4 completed with accuracy 0.8621 in 4.0s (5 of 10, about 20s left)",
    ]
    assert asked == [0, 3, 4]
    assert watched.lines.progress.best is not None
    assert watched.lines.progress.best.number == 1


def test_what_comes_before_the_first_trial_is_no_time_of_the_study() -> None:
    watched = Watched(hours=0.02)
    watched.now = 30.0  # data and model were checked
    watched.lines.started(0, slot=0, params=DEFAULT, attempt=1)
    watched.lines.started(1, slot=1, params=DEFAULT, attempt=1)
    watched.said()
    watched.now = 40.0
    end(watched, 0, seconds=10.0)
    end(watched, 1, seconds=10.0)
    assert watched.lines.progress.elapsed(watched.now) == 10.0
    assert watched.said()[1].endswith("(2 of 10, about 40s left)")  # 8 of 10 s, two at once


def test_a_stop_is_said_past_the_buffers(capfd: pytest.CaptureFixture[str]) -> None:
    Watched().lines.stopping("stopping: the trial is saved first")
    assert capfd.readouterr().err == "12:00:00 stopping: the trial is saved first\n"
