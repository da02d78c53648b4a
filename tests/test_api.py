from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sft_tune
from sft_tune import Study, StudyNotFoundError, UserError
from sft_tune.api import Best

SPEC: dict[str, Any] = {
    "name": "program",
    "task": "image-classification",
    "data": {"source": "sklearn:digits", "train_limit": 100, "validation_limit": 60},
    "model": {"name": "builtin:convnet", "weights": "none"},
    "training": {"epochs": 8, "batch_size": 20, "learning_rate": 1e-6},
    "space": {"learning_rate": [1e-6, 1e-2]},
    "sampler": {"name": "grid"},
    "pruner": {"name": "none"},
    "objective": {"rungs": 2},
    "resources": {"devices": "cpu", "trials_per_device": 1, "threads_per_trial": 1},
}

# As a user would write it: no guard, so that a worker that imported the script would start again.
SCRIPT = f"""\
import sft_tune, sys

study = sft_tune.tune({SPEC!r}, storage="program.db", progress="quiet" not in sys.argv)
print("torch" in sys.modules, study.best.number)
"""


def run_script(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "SFT_TUNE_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "script.py", *args],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder in which a script has tuned, and what it printed."""
    folder = tmp_path_factory.mktemp("program")
    done = run_script(folder)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return folder, done.stdout


@pytest.fixture
def study(script: tuple[Path, str]) -> Iterator[Study]:
    yield sft_tune.open_study("program", storage=str(script[0] / "program.db"))


def test_a_script_tunes_without_a_guard_and_without_torch(script: tuple[Path, str]) -> None:
    lines = script[1].splitlines()
    assert "study program: maximize accuracy on validation" in lines[0]
    assert sum("trial 0 started" in line for line in lines) == 1
    assert lines[-1] == "False 1"


def test_a_study_of_a_mapping_has_no_file_but_a_folder(script: tuple[Path, str]) -> None:
    with contextlib.closing(sqlite3.connect(script[0] / "program.db")) as connection:
        rows = connection.execute("SELECT source_path, root FROM sft_studies").fetchall()
    assert rows == [(str(script[0] / "<mapping>"), str(script[0]))]


def test_a_finished_study_is_returned_at_once(script: tuple[Path, str]) -> None:
    done = run_script(script[0], "quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "False 1\n", "")


def test_the_best_trial_can_be_used(study: Study) -> None:
    import torch

    best = study.best
    assert isinstance(best, Best)
    assert (best.number, best.params) == (1, {"learning_rate": 1e-2})
    assert best.config.training.learning_rate == 1e-2
    assert best.metrics["accuracy"] == best.value
    assert best.checkpoint is not None
    assert best.checkpoint.is_file()
    model = best.load_model()
    assert model.labels == tuple(str(digit) for digit in range(10))
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


def test_trials_and_evaluations_are_frames(study: Study) -> None:
    trials = study.trials()
    assert list(trials.index) == [0, 1]
    assert list(trials["learning_rate"]) == [1e-6, 1e-2]
    assert trials.loc[1, "value"] == trials.loc[1, "validation_accuracy"] == study.best.value
    assert trials["started"].dt.tz is not None
    rungs = study.evaluations()
    assert list(rungs["number"]) == [0, 0, 1, 1]
    assert list(study.evaluations(1)["progress"]) == [50, 100]
    assert rungs["validation_accuracy"].between(0, 1).all()
    assert study.evaluations(99).empty


def test_the_study_is_optunas_too(study: Study) -> None:
    import optuna

    plain = study.optuna
    assert isinstance(plain, optuna.Study)
    assert plain.best_trial.number == study.best.number
    assert plain.best_value == study.best.value
    assert [trial.params for trial in plain.trials] == [
        {"learning_rate": 1e-6},
        {"learning_rate": 1e-2},
    ]


def test_a_study_says_what_it_is(study: Study) -> None:
    assert study.spec.training.epochs == 8
    assert repr(study).startswith("Study('program', storage='sqlite:///")
    assert "hunter2" not in repr(Study("s", study.spec, "postgresql://u:hunter2@h/d"))
    best = study.best
    reached = f"accuracy {best.value:.4f}"
    assert repr(best) == f"<Best: trial 1 of 'program', {reached}, learning_rate=0.01>"


def test_what_is_not_there_is_said(study: Study, script: tuple[Path, str]) -> None:
    with pytest.raises(StudyNotFoundError, match="did you mean 'program'"):
        sft_tune.open_study("progam", storage=str(script[0] / "program.db"))
    with pytest.raises(sft_tune.StorageError, match="no study database"):
        sft_tune.open_study("program", storage="nowhere.db")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trials": 0}, "budget.trials"),
        ({"hours": -1.0}, "budget.hours"),
        ({"spec": "missing.yaml"}, "no such study file"),
        ({"spec": {**SPEC, "name": "not allowed!"}}, "name"),
        ({"spec": {**SPEC, "spaces": {}}}, "did you mean space"),
    ],
)
def test_a_users_mistake_is_an_error_before_anything_starts(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        sft_tune.tune(**{"spec": SPEC, "storage": "x.db", **changes})
    assert not list(Path().iterdir())


def test_an_interrupted_study_can_be_resumed(tmp_path: Path) -> None:
    # A thread interrupts the script as a notebook's stop button does, once a rung is done.
    code = f"""\
import signal, sys, threading, os
import sft_tune
from sft_tune.view import lines

lines.RUNG_SECONDS = 0  # a line for every rung
spec = {SPEC!r}
spec["training"]["epochs"] = 300
spec["objective"]["rungs"] = 100


class Out:
    def write(self, text):
        if "trial 0 at 2 %" in text:
            threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()

    def flush(self):
        pass


sys.stdout, out = Out(), sys.stdout
try:
    sft_tune.tune(spec, storage="program.db")
except KeyboardInterrupt:
    frame = sft_tune.open_study("program", storage="program.db").trials()
    print(list(frame["state"]), frame["last_progress"].max() >= 2, file=out)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "SFT_TUNE_CACHE": str(tmp_path / "cache")},
        check=False,
    )
    assert (done.stdout, done.stderr) == ("['RUNNING'] True\n", "")
    import psutil

    children = [p for p in psutil.process_iter(["cmdline"]) if "sft_tune.run." in str(p.info)]
    mine = [p for p in children if str(tmp_path) in str(p.environ().get("SFT_TUNE_CACHE"))]
    assert mine == []


def test_the_package_offers_what_it_says() -> None:
    assert set(sft_tune.__all__) <= set(dir(sft_tune))
    for name in sft_tune.__all__:
        assert getattr(sft_tune, name) is not None
    assert sft_tune.__version__.count(".") == 2
    with pytest.raises(AttributeError, match="no attribute 'tuna'"):
        sft_tune.tuna  # noqa: B018


def test_every_error_of_the_package_is_offered() -> None:
    from sft_tune import errors

    public = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    assert public <= set(sft_tune.__all__)


def test_signals_are_left_alone_by_the_import() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
