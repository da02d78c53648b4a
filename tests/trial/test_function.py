"""A training function of one's own: what it is given, what it may report, how it ends."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sft_tune.errors import TrialError
from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import FeatureSplit
from sft_tune.trial.data.resident import held_bytes, hold, release
from sft_tune.trial.function import load_function, run_function
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths


class Trial:
    """A trial of the function ``train`` of a file that a test writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = TrialPaths(folder / "trial")
        self.seen: list[Evaluation] = []

    def run(
        self,
        body: str,
        arguments: dict[str, Any] | None = None,
        report: Callable[[Evaluation], bool] = lambda _: True,
        should_stop: Callable[[], bool] = lambda: False,
        direction: str = "maximize",
    ) -> Outcome:
        file = self.folder / "mine.py"
        file.write_text(textwrap.dedent(body))
        config = TrialConfig.model_validate(
            {
                "task": f"python:{file}:train",
                "data": {"source": "none"},
                "model": {"name": "none"},
                "training": {},
                "objective": {"metric": "score", "direction": direction},
                "arguments": arguments or {},
                "seed": 7,
            }
        )

        def note(evaluation: Evaluation) -> bool:
            self.seen.append(evaluation)
            return report(evaluation)

        return run_function(config, self.paths, device="cpu", report=note, should_stop=should_stop)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(tmp_path)


FOUR = """
    def train(config, report):
        for i in range(4):
            score = float(config["scores"].split()[i])
            if report((i + 1) / 4, {"score": score, "train_loss": 1.0}):
                return
"""


def test_data_that_another_trial_has_left_on_the_device_makes_room(trial: Trial) -> None:
    split = FeatureSplit(np.zeros((4, 2), np.float32), np.zeros(4, np.int64))
    cpu = torch.device("cpu")
    hold("digits", {"train": split}, cpu, most=1000)
    try:
        trial.run(FOUR, {"scores": "1 2 3 4"})
        assert held_bytes(cpu) == 0
    finally:
        release(cpu)


def test_it_is_given_what_it_names_and_its_best_report_counts(trial: Trial) -> None:
    (trial.folder / "beside.py").write_text("WORD = 'helper'")
    outcome = trial.run(
        """
        import beside

        def train(seed, report, config, folder, device, extra=3):
            (folder / "kept.txt").write_text(f"{seed} {device} {extra} {beside.WORD}")
            report(0.25, {"score": config["a"]})
            report(0.5, {"score": 3})
            return {"score": 2.0, "other": 1}
        """,
        {"a": 1.5},
    )
    assert (outcome.reason, outcome.value, outcome.best_progress) == ("completed", 3.0, 50)
    assert [(e.progress, e.metrics["score"]) for e in trial.seen] == [(25, 1.5), (50, 3), (100, 2)]
    assert trial.seen[-1].metrics == {"score": 2.0, "other": 1.0}
    assert (trial.paths.root / "files" / "kept.txt").read_text() == "7 cpu 3 helper"
    assert (outcome.metrics, outcome.horizon, outcome.checkpoint) == ({"score": 3.0}, None, None)


def test_the_least_is_best_where_it_is_minimized(trial: Trial) -> None:
    outcome = trial.run(FOUR, {"scores": "4 2 3 5"}, direction="minimize")
    assert (outcome.value, outcome.best_progress) == (2.0, 50)
    assert (trial.seen[0].train_loss, trial.seen[0].metrics) == (1.0, {"score": 4.0})


def test_it_is_told_to_stop_when_it_is_pruned_or_left(trial: Trial) -> None:
    pruned = trial.run(FOUR, {"scores": "1 2 3 4"}, report=lambda e: e.progress < 50)
    assert (pruned.reason, pruned.value, len(trial.seen)) == ("pruned", 2.0, 2)
    stopped = trial.run(FOUR, {"scores": "1 2 3 4"}, should_stop=lambda: True)
    assert (stopped.reason, stopped.steps) == ("stopped", 25)
    # At its end there is nothing left to stop.
    done = trial.run(FOUR, {"scores": "1 2 3 4"}, report=lambda e: e.progress < 100)
    assert done.reason == "completed"


def test_one_that_does_not_listen_is_still_what_it_was_told(trial: Trial) -> None:
    body = FOUR.replace("return", "pass")
    outcome = trial.run(body, {"scores": "1 2 3 4"}, report=lambda e: e.progress < 50)
    assert (outcome.reason, len(trial.seen)) == ("pruned", 2)


def test_a_killed_one_goes_on_with_its_folder_and_its_best(trial: Trial) -> None:
    body = """
        def train(config, folder, report):
            mark = folder / "done"
            begin = int(mark.read_text()) if mark.exists() else 0
            for i in range(begin, 4):
                mark.write_text(str(i + 1))
                if report((i + 1) / 4, {"score": float(config["scores"].split()[i])}):
                    return
    """

    def killed(evaluation: Evaluation) -> bool:
        if evaluation.progress == 50:
            raise KeyboardInterrupt
        return True

    scores = {"scores": "1 9 3 4"}
    with pytest.raises(KeyboardInterrupt):
        trial.run(body, scores, report=killed)
    outcome = trial.run(body, scores)
    assert (outcome.value, outcome.best_progress, outcome.resumed_from) == (9.0, 50, 50)
    assert [e.progress for e in trial.seen] == [25, 50, 75, 100]
    trial.paths.clear_resume()
    assert not trial.paths.reports.exists()


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_an_objective_that_is_no_number_has_diverged(trial: Trial, number: str) -> None:
    outcome = trial.run(FOUR, {"scores": f"1 {number} 3 4"})
    assert (outcome.reason, outcome.value) == ("diverged", 1.0)
    assert outcome.note == f"score became {number} at 50 %"


def test_memory_that_runs_out_ends_it_as_such(trial: Trial) -> None:
    body = """
        def train(report):
            report(0.5, {"score": 1})
            raise MemoryError("too large")
    """
    outcome = trial.run(body)
    assert (outcome.reason, outcome.value) == ("out_of_memory", 1.0)
    assert "too large" in outcome.note


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ("def train(report): report(50, {'score': 1})", "from 0 to 1 (got 50); divide"),
        ("def train(report): report(0.5, {'loss': 1})", "'score' is not among those reported"),
        ("def train(report): report(0.5, {'score': 'x'})", "score must be a number (got 'x')"),
        ("def train(report): report(0.5, 3)", "a mapping of names to numbers (got 3)"),
        ("def train(report): pass", "reported nothing; call report"),
        ("def train(model, report): pass", "has the parameter model, but is called with"),
        ("train = 3", "has no function train"),
        ("import nothing_like_this", "importing"),
    ],
)
def test_what_it_does_wrong_is_named(trial: Trial, body: str, rule: str) -> None:
    with pytest.raises(TrialError) as caught:
        trial.run(body)
    assert rule in str(caught.value)


def test_what_it_raises_is_its_own(trial: Trial) -> None:
    with pytest.raises(ZeroDivisionError):
        trial.run("def train(): 1 / 0")


def test_a_module_is_as_good_as_a_file() -> None:
    with pytest.raises(TrialError, match="json has no function nothing"):
        load_function("python:json:nothing")
