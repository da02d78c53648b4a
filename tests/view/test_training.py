from __future__ import annotations

from sft_tune.view.training import draw_result, rung_line
from tests.view.conftest import Draw


def test_a_rung_is_a_line_with_the_objective_first() -> None:
    evaluation = {
        "progress": 50,
        "metrics": {"loss": 1.25, "accuracy": 0.5},
        "train_loss": 1.5,
        "seconds": 3.0,
    }
    line = " 50 %  accuracy 0.5000  loss 1.2500  train loss 1.5000  3.0s"
    assert rung_line("accuracy", evaluation).plain == line


def test_a_result_says_what_was_reached_and_where_it_lies(draw_text: Draw) -> None:
    result = {
        "reason": "completed",
        "note": "",
        "value": 0.5,
        "best_progress": 50,
        "horizon": 10,
        "seconds": 3.0,
        "checkpoint": "/runs/best.safetensors",
    }
    assert draw_text(draw_result("accuracy", result)).splitlines() == [
        "completed",
        "accuracy  0.5000, at 50 % of 10 steps",
        "time      3.0s",
        "weights   /runs/best.safetensors",
    ]
    diverged = {
        **result,
        "reason": "diverged",
        "note": "loss became nan at step 3 of 10",
        "value": None,
        "checkpoint": None,
    }
    assert draw_text(draw_result("accuracy", diverged)).splitlines() == [
        "diverged: loss became nan at step 3 of 10",
        "time  3.0s",
    ]
