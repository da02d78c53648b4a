"""A trial that was stopped or killed anywhere goes on bit for bit."""

from __future__ import annotations

import functools
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint

Configure = Callable[..., TrialConfig]


class KilledError(Exception):
    """Stands for the death of the process: nothing is saved on its way up."""


def after(calls: int, error: type[Exception] | None = None) -> Callable[..., bool]:
    """Return what says False ``calls`` times, then True (or raises)."""
    left = calls

    def asked(*_: object) -> bool:
        nonlocal left
        left -= 1
        if left >= 0:
            return False
        if error is not None:
            raise error
        return True

    return asked


def check_same(disturbed: Any, calm: Any) -> None:
    assert disturbed.numbers() == calm.numbers()
    assert disturbed.best() == calm.best()


def test_a_trial_stopped_at_every_step_is_the_same_trial(
    new_runner: Any, configure: Configure
) -> None:
    calm = new_runner("calm")
    horizon = calm.run(configure()).horizon
    disturbed = new_runner("disturbed")
    for at in range(horizon):
        outcome = disturbed.run(configure(), should_stop=after(min(at, 1)), checkpoint_seconds=1e9)
        assert outcome.reason == "stopped"
        assert outcome.steps == at
    outcome = disturbed.run(configure())
    assert (outcome.reason, outcome.resumed_from) == ("completed", horizon - 1)
    check_same(disturbed, calm)


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e9])
def test_a_trial_killed_at_any_step_is_the_same_trial(
    new_runner: Any, configure: Configure, checkpoint_seconds: float
) -> None:
    calm = new_runner("calm")
    horizon = calm.run(configure()).horizon
    for at in range(1, horizon, 4):
        disturbed = new_runner(f"killed-{at}")
        with pytest.raises(KilledError):
            disturbed.run(
                configure(),
                should_stop=after(at, KilledError),
                checkpoint_seconds=checkpoint_seconds,
            )
        outcome = disturbed.run(configure())
        rungs = [e.step for e in calm.evaluations if e.step <= at]
        assert outcome.resumed_from == (rungs[-1] if rungs and not checkpoint_seconds else 0)
        check_same(disturbed, calm)


def test_a_trial_killed_while_it_reports_reports_that_rung_again(
    new_runner: Any, digits: Configure
) -> None:
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    calm.run(digits())
    with pytest.raises(KilledError):
        disturbed.run(
            digits(), report=lambda e: after(0, KilledError)() if e.progress == 75 else True
        )
    disturbed.run(digits())
    assert [e.progress for e in disturbed.evaluations] == [25, 50, 75, 75, 100]
    check_same(disturbed, calm)


@pytest.mark.parametrize("length", [0, 7, 1000, -1])
def test_a_torn_checkpoint_is_left_for_the_one_before(
    new_runner: Any, digits: Configure, length: int
) -> None:
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    calm.run(digits())
    disturbed.run(digits(), should_stop=after(8))
    whole = disturbed.paths.resume.read_bytes()
    disturbed.paths.resume.write_bytes(whole[:length])
    outcome = disturbed.run(digits())
    assert outcome.resumed_from == 6
    assert "resume.safetensors is damaged" in outcome.note
    check_same(disturbed, calm)


def test_with_both_checkpoints_damaged_the_trial_begins_anew(
    new_runner: Any, digits: Configure
) -> None:
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    calm.run(digits())
    disturbed.run(digits(), should_stop=after(8))
    for path in (disturbed.paths.resume, disturbed.paths.previous_resume):
        damaged = bytearray(path.read_bytes())
        damaged[-100] ^= 1
        path.write_bytes(damaged)
    outcome = disturbed.run(digits())
    assert outcome.resumed_from == 0
    assert outcome.note.count("is damaged") == 2 and "began anew" in outcome.note
    check_same(disturbed, calm)


def test_the_best_rung_survives_a_stop(runner: Any, digits: Configure) -> None:
    config = digits(training={"learning_rate": 0.02}, objective={"rungs": 12})
    runner.run(config, should_stop=after(11))
    best = max(e.metrics["accuracy"] for e in runner.evaluations)
    first = next(e.progress for e in runner.evaluations if e.metrics["accuracy"] == best)
    runner.paths.best.unlink()
    runner.evaluations.clear()
    outcome = runner.run(config)
    last = runner.evaluations[-1]
    expected = (last.metrics["accuracy"], 100) if last.metrics["accuracy"] > best else (best, first)
    assert (outcome.value, outcome.best_progress) == expected
    assert runner.paths.best.exists()


def test_a_checkpoint_of_another_configuration_is_not_used(
    new_runner: Any, digits: Configure
) -> None:
    calm, changed = new_runner("calm"), new_runner("changed")
    calm.run(digits(seed=9))
    changed.run(digits(), should_stop=after(8))
    changed.evaluations.clear()
    outcome = changed.run(digits(seed=9))
    assert outcome.resumed_from == 0
    assert "another configuration" in outcome.note
    check_same(changed, calm)


def test_seconds_add_up_over_attempts(runner: Any, digits: Configure) -> None:
    first = runner.run(digits(), should_stop=after(8))
    second = runner.run(digits())
    assert second.seconds > first.seconds > 0
    seconds = [e.seconds for e in runner.evaluations]
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_every_optimizer_goes_on_as_it_was(
    new_runner: Any, digits: Configure, optimizer: str
) -> None:
    config = digits(training={"optimizer": optimizer, "learning_rate": 0.01})
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    calm.run(config)
    disturbed.run(config, should_stop=after(5))
    disturbed.run(config)
    check_same(disturbed, calm)


def test_the_scaler_of_half_precision_goes_on_as_it_was(
    new_runner: Any, digits: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So large a scale overflows: it is halved, and the step skipped, until gradients are finite.
    scaler = functools.partial(torch.GradScaler, init_scale=2.0**24)
    monkeypatch.setattr(torch, "GradScaler", scaler)
    limits = {"train_limit": 24, "validation_limit": 8}
    config = digits(data=limits, training={"precision": "fp16", "epochs": 3})
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    calm.run(config)
    disturbed.run(config, should_stop=after(4))
    _, header = checkpoint.read(disturbed.paths.resume)
    assert header["scaler"]["scale"] < 2.0**24
    disturbed.run(config)
    check_same(disturbed, calm)


CHILD = """
import json, os, signal, sys
import torch
from pathlib import Path
from sft_tune.spec.config import TrialConfig
from sft_tune.trial.loop import run_trial
from sft_tune.trial.paths import TrialPaths

torch.set_num_threads(1)
config = TrialConfig.model_validate_json(sys.argv[1])
steps = 0

def should_stop():
    global steps
    steps += 1
    if steps == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return False

run_trial(config, TrialPaths(Path(sys.argv[2])), device="cpu", cache=Path(sys.argv[3]),
          report=lambda evaluation: True, should_stop=should_stop, checkpoint_seconds=0.0,
          evaluation_batch_size=16)
"""


def test_a_killed_process_loses_nothing(new_runner: Any, digits: Configure) -> None:
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    calm.run(digits())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, digits().model_dump_json(), str(disturbed.paths.root),
         str(disturbed.cache)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    outcome = disturbed.run(digits())
    assert (outcome.reason, outcome.resumed_from) == ("completed", 6)
    assert disturbed.numbers() == {p: r for p, r in calm.numbers().items() if p > 50}
    assert disturbed.best() == calm.best()
