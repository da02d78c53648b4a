from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sft_tune.cli.stopping import HINT, Stopping
from tests.cli.conftest import PROGRAM, STUDY, Run, Tiny, program_environment

# The program, with a line for every rung.
EVERY_RUNG = (
    "from sft_tune.cli import main; from sft_tune.view import lines; lines.RUNG_SECONDS = 0; main()"
)


def test_a_study_is_told_line_by_line_where_there_is_no_terminal(tiny: Tiny) -> None:
    lines = [line[9:] for line in tiny.stdout.splitlines() if line[2:3] == ":"]
    assert lines[0].startswith("study tiny: maximize accuracy on validation, in sqlite:///")
    assert lines[1] == "checking data and model"
    assert lines[2] == "trial 0 started: learning_rate=1e-06"
    # Its rungs come too quickly to be told.
    assert lines[3].startswith("trial 0 completed with accuracy ")
    assert "(1 of 3, about " in lines[3]
    assert any("diverged" in line and "nan" in line for line in lines)
    assert tiny.stderr == ""


def test_a_study_ends_with_its_summary(tiny: Tiny) -> None:
    summary = tiny.stdout[tiny.stdout.index("tiny: accuracy ") :]
    assert "fewer errors, default to tuned, on" in summary
    assert "best configuration (trial " in summary
    assert "learning_rate   0.01    1e-06" in summary
    assert "trials   3: 2 completed, 1 diverged" in summary
    assert "best.safetensors" in summary
    assert "sft-tune best tiny --storage " in summary


def test_a_finished_study_says_so_and_is_no_error(run: Run, tiny: Tiny) -> None:
    result = run("start", tiny.file, "--storage", tiny.storage)
    assert "study tiny is finished" in result.stdout
    assert "continued" not in result.stdout
    assert "--trials N" in result.stdout
    assert "fewer errors" in result.stdout
    assert "A new study created" not in result.stderr


def test_a_changed_study_is_refused_with_what_differs(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text(STUDY.replace("epochs: 8", "epochs: 3"))
    refused = run("start", changed, "--storage", tiny.storage, code=2)
    assert "training.epochs: 8 -> 3" in refused.stderr
    assert "sft-tune delete tiny" in refused.stderr
    assert "continued" not in refused.stdout


def test_every_problem_of_a_study_file_is_told_at_once(run: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(STUDY.replace("epochs: 8", "epoch: 8").replace("rungs: 2", "rungs: 0"))
    result = run("start", wrong, code=2)
    assert result.stderr.startswith(f"error: {wrong}: 2 problems\n")
    assert "line 5, training.epoch" in result.stderr
    assert "did you mean epochs?" in result.stderr
    assert "objective.rungs" in result.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--trials", "0", "budget.trials: must be at least 1 (got 0)"),
        ("--hours", "-1", "budget.hours: must be above 0 (got -1)"),
        ("--hours", "nan", "budget.hours: must be a finite number (got nan)"),
    ],
)
def test_a_budget_that_no_file_may_have_is_refused(
    run: Run, tiny: Tiny, option: str, value: str, said: str
) -> None:
    result = run("start", tiny.file, "--storage", tiny.storage, option, value, code=2)
    assert result.stderr == f"error: {said}\n"


def test_a_budget_below_what_a_study_has_is_called_so(run: Run, tiny: Tiny) -> None:
    shutil.copy(tiny.storage, "copy.db")
    text = run("start", tiny.file, "--storage", "copy.db", "--trials", "2").stdout
    assert "study tiny is finished: 2 is fewer than the 3 trials it has; `sft-tune start" in text


def test_the_storage_of_the_file_is_used_unless_another_is_given(run: Run, tiny: Tiny) -> None:
    named = tiny.file.with_name("named.yaml")
    named.write_text(STUDY + "storage: {url: 'sqlite:///tiny.db'}\n")
    assert "is finished" in run("start", named).stdout
    assert not Path("sft_tune.db").exists()


def test_ctrl_c_stops_in_order_after_a_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    file.write_text(STUDY.replace("epochs: 8", "epochs: 300").replace("rungs: 2", "rungs: 100"))
    program = subprocess.Popen(
        [sys.executable, "-c", EVERY_RUNG, "start", file, "--plain"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=program_environment(tmp_path / "cache"),
    )
    assert program.stdout is not None
    for line in program.stdout:
        if "trial 0 at 2 %" in line:
            program.send_signal(signal.SIGINT)
            break
    out, err = program.communicate()
    assert program.returncode == 130, out + err
    assert HINT in err
    assert "trial 0 saved at step " in out
    assert "stopped after 0 of 3 trials; `sft-tune start " in out
    assert "Traceback" not in err


def test_ctrl_c_before_the_first_trial_says_that_nothing_was_started(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(STUDY)
    cache = tmp_path / "cache"
    program = subprocess.Popen(
        [PROGRAM, "start", "tiny.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=program_environment(cache),
    )
    assert program.stdout is not None
    for line in program.stdout:
        if "checking data and model" in line:
            program.send_signal(signal.SIGINT)
            break
    out, err = program.communicate()
    assert (program.returncode, out, err) == (130, "", "interrupted: nothing was started\n")
    left = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SFT_TUNE_CACHE") == str(cache):
                left.append(process)
    assert psutil.wait_procs(left, timeout=30)[1] == []


class Signalled:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def call(self, name: str) -> Callable[..., Any]:
        return lambda *args: self.calls.append(name)


def test_the_first_signal_stops_and_the_second_aborts() -> None:
    heard = Signalled()
    before = signal.getsignal(signal.SIGINT)
    with Stopping() as stopping:
        stopping.attach(heard.call("stop"), heard.call("abort"), heard.call("say"))
        os.kill(os.getpid(), signal.SIGINT)
        assert heard.calls == ["say", "stop"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.calls == ["say", "stop", "abort"]
        assert stopping.count == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_before_anything_can_be_stopped_is_a_keyboard_interrupt() -> None:
    with Stopping(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_study_that_has_reached_its_target_says_so_and_how_to_go_on(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "aim.yaml"
    file.write_text(STUDY + "budget: {target: 0.01}\n")
    for _ in range(2):
        text = run("start", file, "--plain", "--storage", "own.db").stdout
        assert "its target is reached; `sft-tune start" in text
        assert "aim.yaml --storage own.db` goes on once budget.target of the file is higher" in text
        assert "sft-tune trials tiny --storage own.db" in text
