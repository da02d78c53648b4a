"""A study of a training function of one's own, through worker processes and a database."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import optuna
import pytest

import sft_tune
from sft_tune.errors import StudyExistsError, TrialError, UserError
from sft_tune.run.dispatcher import Dispatcher
from sft_tune.run.events import Event, RungReached
from sft_tune.run.study import start_study
from sft_tune.spec.load import LoadedStudy, parse_study
from sft_tune.store import reads
from sft_tune.store.database import Database

FUNCTION = """
    import os

    def train(config, folder, report):
        mark = folder / "done"
        begin = int(mark.read_text()) if mark.exists() else 0
        with open(folder / "calls.txt", "a") as calls:
            calls.write(f"{begin} ")
        if config["x"] == 13:
            raise ValueError("thirteen")
        for i in range(begin, 4):
            (folder / "new").write_text(str(i + 1))  # a kill may come at any moment
            os.replace(folder / "new", mark)
            score = -abs(config["x"] - 3) + i / 10
            if report((i + 1) / 4, {"score": score, "loss": -score}):
                return
"""
RESOURCES = {"devices": "cpu", "trials_per_device": 1, "threads_per_trial": 1}


def run(folder: Path, notify: Any = None, on_dispatcher: Any = None, **sections: Any) -> list[Any]:
    """Run a study of `FUNCTION` to its end; return its rows."""
    (folder / "mine.py").write_text(textwrap.dedent(FUNCTION))
    given = {
        "name": "mine",
        "task": "python:mine.py:train",
        "space": {"x": [1, 2, 3, 4, 5, 6]},
        "objective": {"metric": "score", "direction": "maximize"},
        "sampler": {"name": "grid"},
        "pruner": {"name": "none"},
        "resources": RESOURCES,
        **sections,
    }
    loaded = LoadedStudy(parse_study(given, root=folder), "", folder / "study.yaml")
    db = Database.open("sqlite:///t.db", create=True)
    options = {"on_dispatcher": on_dispatcher} if on_dispatcher else {}
    try:
        start_study(loaded, db, notify=notify or (lambda event: None), **options)
        return reads.trial_rows(db, "mine")
    finally:
        db.dispose()


def test_it_is_searched_pruned_failed_and_kept_like_any_other(tmp_path: Path) -> None:
    pruner = {"name": "median", "first": 25, "startup_trials": 2}
    trials = run(tmp_path, pruner=pruner, space={"x": [1, 2, 3, 4, 5, 6, 13]})
    assert len(trials) == 7 and {t.state for t in trials} == {"COMPLETE", "PRUNED", "FAIL"}
    assert trials[0].state == "COMPLETE" and trials[0].params == {"x": 1}
    best = max((t for t in trials if t.value is not None), key=lambda t: t.value)
    assert best.params == {"x": 3} and best.value == pytest.approx(0.3)
    assert [t.last_progress for t in trials if t.state == "PRUNED"] != []
    theirs = optuna.load_study(study_name="mine", storage="sqlite:///t.db")
    assert theirs.best_params == {"x": 3}
    assert theirs.trials[0].intermediate_values == pytest.approx(
        {25: -2, 50: -1.9, 75: -1.8, 100: -1.7}
    )
    # What it raises fails its trial alone.
    failed = [t for t in trials if t.state == "FAIL"]
    assert [t.params for t in failed] == [{"x": 13}]
    assert failed[0].note == "ValueError: thirteen" and "mine.py" in (failed[0].error or "")


def test_an_equal_configuration_is_not_trained_again(tmp_path: Path) -> None:
    sampler = {"name": "random"}
    trials = run(tmp_path, sampler=sampler, space={"x": [2, 3]}, budget={"trials": 6})
    assert [t.reason for t in trials].count("duplicate") == 4
    assert all(t.value == pytest.approx(0.3) for t in trials if t.params["x"] == 3)


def test_a_killed_worker_s_trial_goes_on_in_its_folder(tmp_path: Path) -> None:
    dispatchers: list[Dispatcher] = []
    killed: list[int] = []

    def notify(event: Event) -> None:
        if isinstance(event, RungReached) and event.progress == 50 and not killed:
            killed.append(event.number)
            os.kill(dispatchers[0].workers[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]

    trials = run(tmp_path, notify, dispatchers.append, space={"x": [3]}, budget={"trials": 1})
    assert killed == [0]
    assert (trials[0].state, trials[0].attempts) == ("COMPLETE", 2)
    assert trials[0].value == pytest.approx(0.3)
    calls = next((tmp_path).rglob("trial-00000/files/calls.txt")).read_text().split()
    assert len(calls) == 2 and int(calls[1]) >= 2


def test_loggers_write_beside_the_database_and_a_broken_one_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    resources = {**RESOURCES, "loggers": ["tensorboard", "mlflow"]}
    trials = run(tmp_path, space={"x": [3]}, budget={"trials": 1}, resources=resources)
    assert trials[0].state == "COMPLETE" and "not logged to mlflow: " in (trials[0].note or "")
    assert list(tmp_path.rglob("trial-00000/events.out.tfevents.*"))


def test_one_that_cannot_be_imported_ends_the_study_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(TrialError, match="has no function fit"):
        run(tmp_path, task="python:mine.py:fit")


SCRIPT = """
import sft_tune

@sft_tune.task(space={"x": {"low": 0, "high": 9}}, metric="score", direction="maximize",
               resources={"devices": "cpu", "trials_per_device": 1, "threads_per_trial": 1})
def train(config, report):
    return {"score": -(config["x"] - 3) ** 2}

GUARD
    study = sft_tune.tune(train, trials=5, storage="mine.db", progress=False)
    print(study.name, len(study.trials()), sorted(study.best.params), study.best.value <= 0)
"""


def script(folder: Path, guard: str, text: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(text.replace("GUARD", guard))
    return subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, cwd=folder, check=False
    )


def test_a_script_tunes_its_own_function(tmp_path: Path) -> None:
    done = script(tmp_path, 'if __name__ == "__main__":')
    assert (done.stdout, done.stderr) == ("train 5 ['x'] True\n", "")


def test_a_script_without_a_guard_is_told_to_have_one(tmp_path: Path) -> None:
    done = script(tmp_path, "if True:")
    assert done.returncode != 0 and "put the call under `if __name__" in done.stderr


def test_what_belongs_to_functions_is_refused_elsewhere() -> None:
    with pytest.raises(UserError, match="only training functions take name, space"):
        sft_tune.tune("study.yaml", name="other", space={"x": [1]})


def test_another_function_of_the_same_name_needs_another_name(tmp_path: Path) -> None:
    run(tmp_path, space={"x": [3]}, budget={"trials": 1})
    (tmp_path / "other.py").write_text(textwrap.dedent(FUNCTION))
    with pytest.raises(StudyExistsError, match=r"another name \(`tune\(\.\.\., name=\.\.\.\)`"):
        run(tmp_path, space={"x": [3]}, budget={"trials": 1}, task="python:other.py:train")


def test_a_script_names_its_study(tmp_path: Path) -> None:
    named = SCRIPT.replace("tune(train, ", 'tune(train, name="mine", ')
    done = script(tmp_path, 'if __name__ == "__main__":', named)
    assert (done.stdout, done.stderr) == ("mine 5 ['x'] True\n", "")
