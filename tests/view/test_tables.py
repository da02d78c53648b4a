from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from sft_tune.view.tables import (
    best_so_far,
    configuration,
    rungs_table,
    state_of_study,
    state_of_trial,
    studies_table,
    trials_table,
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

WIDE = {f"a_rather_long_name_{i}": 0.123456 for i in range(8)}


def console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, markup=False)


def test_studies_stand_on_a_line_each(draw_text: Draw) -> None:
    rows = [
        study_row(name="digits", ended="trials"),
        study_row(name="reviews", lease_until=NOW + 5, max_trials=None, best=None),
        study_row(name="theirs", managed=False, metric=None, active_seconds=None, created=None),
    ]
    lines = draw_text(studies_table(rows, console(100), NOW), 100).splitlines()
    assert lines[0].split() == ["study", "state", "trials", "metric", "best", "time", "begun"]
    assert lines[1].startswith("digits   finished: trials  5 of 10  accuracy  0.9000  2m 05s")
    assert lines[2].startswith("reviews  running                 5  accuracy       –  2m 05s")
    assert lines[3].split()[-2:] == ["–", "–"]
    narrow = draw_text(studies_table(rows, console(40), NOW), 40).splitlines()
    assert narrow[0].split() == ["study", "state", "trials"]
    assert narrow[1].startswith("digits   finished: trials  5 of 10")
    assert " ".join(narrow[4:]).split() == (
        "no room for metric, best, time, begun; --json has all".split()
    )


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "stopped"),
        ({"states": {}}, "waiting"),
        ({"states": {}, "wanted": "stopped"}, "stopped"),
        ({"ended": "hours"}, "finished: hours"),
        ({"lease_until": NOW + 1}, "running"),
        ({"lease_until": NOW - 1}, "stopped"),
        ({"managed": False}, "Optuna's alone"),
        ({"optuna_study_id": None}, "Optuna's side is gone"),
    ],
)
def test_a_study_has_a_state(changes: dict[str, Any], state: str) -> None:
    assert state_of_study(study_row(**changes), NOW) == state
    # A runner that lives may take up what nobody has asked to stop.
    if state == "stopped" and "wanted" not in changes:
        state = "waiting"
    assert state_of_study(study_row(**changes), NOW, served=True) == state


@pytest.mark.parametrize(
    ("row", "state"),
    [
        (trial_row(0), "completed"),
        (pruned_row(0), "pruned"),
        (trial_row(0, reason="duplicate", duplicate_of=3), "duplicate of 3"),
        (trial_row(0, None, state="FAIL", reason="out_of_memory"), "out of memory"),
        (trial_row(0, reason=None, phase=None), "completed"),
        (trial_row(0, None, state="FAIL", reason=None, phase=None), "failed"),
        (trial_row(0, None, state="WAITING", reason=None, phase=None), "waiting"),
        (trial_row(0, None, state="RUNNING", reason=None, phase=None), "running"),
        (running_row(0), "running"),
        (running_row(0, lease_expires=NOW - 1), "interrupted"),
        (running_row(0, lease_expires=None), "interrupted"),
    ],
)
def test_a_trial_has_a_state(row: Any, state: str) -> None:
    assert state_of_trial(row, NOW) == state


def test_trials_show_what_is_searched_and_nothing_else(draw_text: Draw) -> None:
    rows = [
        trial_row(0, 0.8621, params=DEFAULT),
        pruned_row(1, value=0.41, params={"learning_rate": 2e-3, "decay": 0.5}),
        running_row(2, params={}),
    ]
    table = trials_table(rows, console(100), metric="accuracy", now=NOW, best=0, so_far={2: 0.45})
    assert draw_text(table, 100).splitlines() == [
        "trial  ended as   best accuracy  reached  time  learning_rate  model.weights  decay",
        "    0  completed         0.8621    100 %   10s         0.0001        DEFAULT      –",
        "    1  pruned            0.4100     20 %   10s          0.002              –    0.5",
        "    2  running           0.4500     40 %     –              –              –      –",
    ]


def test_what_a_running_trial_has_reached_is_its_best_rung_on_the_whole_validation_split() -> None:
    rungs = [
        rung_row(2, 10, 0.9, 1.0)._replace(examples=100),
        rung_row(2, 20, 0.45, 2.0),
        rung_row(2, 30, 0.4, 3.0),
        rung_row(3, 10, 0.7, 1.0),
    ]
    assert best_so_far(rungs, "accuracy", maximize=True) == {2: 0.45, 3: 0.7}
    assert best_so_far(rungs, "accuracy", maximize=False) == {2: 0.4, 3: 0.7}


def test_a_narrow_terminal_first_gets_titles_on_two_lines(draw_text: Draw) -> None:
    rows = [trial_row(0, params={"learning_rate": 2e-3, "weight_decay": 0.1, "model.dropout": 0.2})]
    lines = draw_text(trials_table(rows, console(70), metric="accuracy", now=NOW), 70).splitlines()
    assert lines[0].split() == ["best", "learning_", "weight_", "model."]
    assert lines[1].split()[-3:] == ["rate", "decay", "dropout"]
    assert lines[2].split()[-3:] == ["0.002", "0.1", "0.2"]


def test_a_narrower_one_says_which_parameters_it_has_no_room_for(draw_text: Draw) -> None:
    rows = [trial_row(0, params=WIDE)]
    text = draw_text(trials_table(rows, console(80), metric="accuracy", now=NOW))
    assert "--format csv has all" in text
    assert "a_rather_long_name_7" in text.replace("\n", " ")
    text = draw_text(trials_table(rows, console(40), metric="accuracy", now=NOW), 40)
    assert "no room for a_rather_long_name_0" in text


def test_on_a_very_narrow_one_why_a_trial_ended_goes_on_over_lines(draw_text: Draw) -> None:
    faults = [{"name": name, "since": None, "evidence": "x"} for name in ("overfitting", "plateau")]
    rows = [trial_row(0, 0.5, params={}, flags_json=json.dumps({"faults": faults}))]
    table = trials_table(rows, console(44), metric="accuracy", now=NOW)
    lines = draw_text(table, 44).splitlines()[1:]
    assert lines[1].split()[0] == "0" and lines[1].split()[-1] == "10s"
    assert "overfitting," in lines[1] + lines[2] and len(lines) > 2


def test_steps_of_another_program_are_no_percent(draw_text: Draw) -> None:
    rows = [trial_row(0, 0.5, phase=None, reason=None, last_progress=7)]
    head, line = draw_text(trials_table(rows, console(90), metric="f1", now=NOW), 90).splitlines()[
        :2
    ]
    assert head.split()[3:5] == ["f1", "step"]
    assert line.split()[:4] == ["0", "completed", "0.5000", "7"]


def test_rungs_have_the_objective_first(draw_text: Draw) -> None:
    rows = [rung_row(3, 50, 0.51, 1.5), rung_row(3, 100, 0.72, 83.0)]
    assert draw_text(rungs_table(rows, "accuracy")).splitlines() == [
        "                     train               val  learning",
        "   at  epoch  step    loss  accuracy    loss      rate  gradient    time",
        " 50 %      1    50  1.5000    0.5100  1.2500   3.2e-05      0.75    1.5s",
        "100 %      2   100  1.5000    0.7200  1.2500   3.2e-05      0.75  1m 23s",
    ]


def test_rungs_on_a_part_of_validation_say_so(draw_text: Draw) -> None:
    rows = [rung_row(3, 50, 0.51, 1.5)._replace(examples=1000), rung_row(3, 100, 0.72, 83.0)]
    lines = draw_text(rungs_table(rows, "accuracy")).splitlines()
    assert [line.split()[5] for line in lines[2:]] == ["1000", "all"]


def test_a_configuration_marks_what_differs_from_the_default(draw_text: Draw) -> None:
    config = {
        "model": {"name": "builtin:convnet", "weights": "none", "dropout": None},
        "training": {"learning_rate": 2e-3, "epochs": 3, "optimizer": "sgd"},
    }
    params = {"learning_rate": 2e-3, "epochs": 3, "decay_factor": 0.5}
    text = draw_text(configuration(config, params, {"learning_rate": 1e-4, "epochs": 3}))
    assert text.splitlines() == [
        "searched       value  default",
        "learning_rate  0.002   0.0001",
        "epochs             3     same",
        "decay_factor     0.5        –",
        "",
        "fixed",
        "model.name=builtin:convnet, model.weights=none, optimizer=sgd",
    ]


def test_what_has_no_effect_is_no_setting_of_a_trial(draw_text: Draw) -> None:
    training = {"optimizer": "adamw", "momentum": 0.9, "mix": "none", "freeze": "backbone"}
    config = {
        "task": "text-classification",
        "model": {"name": "transformers:m", "lora_rank": None, "lora_targets": "all-linear"},
        "training": {**training, "token_masking": 0.0, "color_jitter": 0.0, "freeze_blocks": 1},
    }
    assert draw_text(configuration(config, {}, None), 100).splitlines() == [
        "fixed",
        "model.name=transformers:m, optimizer=adamw, freeze=backbone, token_masking=0",
    ]
    function = {"task": "python:f.py:train", "arguments": {}}
    assert "fixed" not in draw_text(configuration(function, {"depth": 2}, None))


def test_without_a_known_default_nothing_is_compared(draw_text: Draw) -> None:
    text = draw_text(configuration({"training": {}}, {"epochs": 3}, None))
    assert text.splitlines()[:2] == ["searched  value", "epochs        3"]
