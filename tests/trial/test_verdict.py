"""The verdict on a rung comes while the trial trains on: when, does not show in what is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint, loop
from sft_tune.trial.outcome import Evaluation, Outcome
from tests.trial.test_resume import KilledError, after, check_same

Configure = Callable[..., TrialConfig]

LOOKS = [0, 1, 2, 3, 99]
"""How often it is looked for in vain: at once, before each step, and until it is waited for."""


class Late:
    """A verdict that is there after some looks, or when it is waited for."""

    def __init__(self, go_on: bool, looks: int, unsettled: Callable[[], None]) -> None:
        self._go_on, self._left, self._unsettled = go_on, looks, unsettled

    def poll(self) -> bool | None:
        self._unsettled()
        self._left -= 1
        return None if self._left >= 0 else self._go_on

    def wait(self) -> bool:
        self._unsettled()
        return self._go_on


def late(runner: Any, looks: int, pruned_at: int = 0) -> Callable[[Evaluation], Late]:
    """Return what judges rungs so late, and sees that no checkpoint is ahead of one."""

    def report(evaluation: Evaluation) -> Late:
        def unsettled() -> None:
            assert saved_at(runner) < evaluation.step

        return Late(evaluation.progress != pruned_at, looks, unsettled)

    return report


def saved_at(runner: Any) -> int:
    """Return the step of the checkpoint; 0 without one."""
    if not runner.paths.resume.exists():
        return 0
    return checkpoint.read(runner.paths.resume)[1]["step"]


def kept(outcome: Outcome) -> dict[str, Any]:
    """Return what is stored of ``outcome`` that is no cost."""
    record = dataclasses.asdict(outcome)
    for cost in ("seconds", "peak_memory", "samples_per_second", "checkpoint"):
        del record[cost]
    return record


@pytest.mark.parametrize(("looks", "saved"), [(0, 9), (1, 9), (2, 10), (3, 11), (99, 6)])
def test_a_trial_trains_on_until_the_verdict_is_there(
    new_runner: Any, digits: Configure, looks: int, saved: int
) -> None:
    calm, disturbed = new_runner("calm"), new_runner("late")
    expected = calm.run(digits())
    assert [e.step for e in calm.evaluations] == [3, 6, 9, 12]
    outcome = disturbed.run(digits(), report=late(disturbed, looks))
    assert kept(outcome) == kept(expected)
    # At the first step after the verdict; who is held at each rung is saved at every other one.
    assert saved_at(disturbed) == saved
    check_same(disturbed, calm)


@pytest.mark.parametrize("looks", LOOKS[1:])
@pytest.mark.parametrize("rung", [25, 50])
def test_a_pruned_trial_is_what_it_was_at_its_rung(
    new_runner: Any, digits: Configure, looks: int, rung: int
) -> None:
    calm, disturbed = new_runner("calm"), new_runner("late")
    expected = calm.run(digits(), report=lambda e: e.progress != rung)
    outcome = disturbed.run(digits(), report=late(disturbed, looks, pruned_at=rung))
    assert (outcome.reason, outcome.steps) == ("pruned", 12 * rung // 100)
    assert kept(outcome) == kept(expected)
    check_same(disturbed, calm)


@pytest.mark.parametrize("looks", LOOKS[1:])
def test_one_that_is_out_of_patience_too(new_runner: Any, digits: Configure, looks: int) -> None:
    config = digits(training={"learning_rate": 1e-9, "patience": 1})
    calm, disturbed = new_runner("calm"), new_runner("late")
    expected = calm.run(config)
    outcome = disturbed.run(config, report=late(disturbed, looks))
    assert (outcome.reason, outcome.steps) == ("early_stopped", 6)
    assert kept(outcome) == kept(expected)
    check_same(disturbed, calm)


@pytest.mark.parametrize("looks", LOOKS[1:])
def test_one_that_was_killed_meanwhile_goes_on_as_it_was(
    new_runner: Any, digits: Configure, looks: int
) -> None:
    calm = new_runner("calm")
    calm.run(digits())
    for at in (4, 7, 11):
        disturbed = new_runner(f"killed-{at}")
        with pytest.raises(KilledError):
            disturbed.run(
                digits(),
                report=late(disturbed, looks),
                should_stop=after(at, KilledError),
            )
        disturbed.run(digits())
        check_same(disturbed, calm)


@pytest.mark.parametrize("pruned_at", [0, 50])
@pytest.mark.parametrize("at", [6, 7, 8])
def test_who_is_to_leave_waits_for_the_verdict_first(
    new_runner: Any, digits: Configure, at: int, pruned_at: int
) -> None:
    calm, disturbed = new_runner("calm"), new_runner("late")
    expected = calm.run(digits(), report=lambda e: e.progress != pruned_at)
    outcome = disturbed.run(
        digits(), report=late(disturbed, 99, pruned_at=pruned_at), should_stop=after(at)
    )
    if pruned_at:
        assert kept(outcome) == kept(expected)
    else:
        assert (outcome.reason, outcome.steps, saved_at(disturbed)) == ("stopped", at, at)
        assert disturbed.run(digits()).resumed_from == at
    check_same(disturbed, calm)


@pytest.mark.parametrize("how", ["diverged", "out_of_memory", "crashed"])
@pytest.mark.parametrize("pruned_at", [0, 25])
def test_what_goes_wrong_after_the_rung_is_not_what_a_pruned_trial_ends_of(
    new_runner: Any,
    digits: Configure,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    pruned_at: int,
) -> None:
    plain = loop.train_step

    def failing(trainee: Any, step: int) -> Any:
        loss, norm, size = plain(trainee, step)
        if step < 4:
            return loss, norm, size
        if how == "out_of_memory":
            raise torch.OutOfMemoryError
        if how == "crashed":
            raise KilledError
        return loss * float("nan"), norm, size

    calm, disturbed = new_runner("calm"), new_runner("late")
    expected = calm.run(digits(), report=lambda e: e.progress != pruned_at)
    monkeypatch.setattr(loop, "train_step", failing)
    report = late(disturbed, 99, pruned_at=pruned_at)
    if how == "crashed" and not pruned_at:
        with pytest.raises(KilledError):
            disturbed.run(digits(), report=report)
        return
    outcome = disturbed.run(digits(), report=report)
    if pruned_at:
        assert kept(outcome) == kept(expected)
        check_same(disturbed, calm)
    else:
        assert outcome.reason == how
