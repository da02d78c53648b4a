"""What drives stacks in tests, and compares their trials with those that train alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint
from sft_tune.trial.loop import run_trial
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.stack.trials import Stack

# A trial alone multiplies matrices in another order than the stack.
ROUNDING = {"rel": 2e-4, "abs": 2e-5}


class Driver:
    """Does what a worker does: brings verdicts, and collects what is reported."""

    def __init__(
        self,
        folder: Path,
        verdict: Callable[[str, Evaluation], bool | None],
        keep: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.folder = folder
        self.stack: Stack[str] = Stack(
            device, folder / "cache", checkpoint_seconds=0.0, evaluation_batch_size=16, keep=keep
        )
        self.seen: dict[str, list[Evaluation]] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.errors: dict[str, Exception] = {}
        self._verdict = verdict

    def enter(self, name: str, config: TrialConfig) -> None:
        def report(evaluation: Evaluation) -> None:
            self.seen.setdefault(name, []).append(evaluation)
            answer = self._verdict(name, evaluation)
            if answer is not None:
                self.stack.answer(name, answer)

        self.stack.enter(name, config, TrialPaths(self.folder / name), report)

    def work(self, until: Callable[[], bool] = lambda: False) -> None:
        while len(self.stack) and not until():
            for name, outcome in self.stack.work():
                if isinstance(outcome, Exception):
                    self.errors[name] = outcome
                else:
                    self.outcomes[name] = outcome


def go_on(name: str, evaluation: Evaluation) -> bool:
    return True


def alone(
    config: TrialConfig,
    folder: Path,
    verdict: Callable[[str, Evaluation], bool] = go_on,
    device: str = "cpu",
) -> tuple[Outcome, list[Evaluation]]:
    seen: list[Evaluation] = []

    def report(evaluation: Evaluation) -> bool:
        seen.append(evaluation)
        return verdict("alone", evaluation)

    outcome = run_trial(
        config,
        TrialPaths(folder),
        device=device,
        cache=folder.parent / "cache",
        report=report,
        should_stop=lambda: False,
        checkpoint_seconds=0.0,
        evaluation_batch_size=16,
    )
    return outcome, seen


def same(found: Iterable[Evaluation], expected: Iterable[Evaluation]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.progress, one.step, one.horizon) == (other.progress, other.step, other.horizon)
        assert one.metrics == pytest.approx(other.metrics, **ROUNDING)
        assert one.train_loss == pytest.approx(other.train_loss, **ROUNDING)
        assert one.learning_rate == other.learning_rate
        assert one.gradient_norm == pytest.approx(other.gradient_norm, **ROUNDING)
        assert one.gradient_norm_max == pytest.approx(other.gradient_norm_max, **ROUNDING)
        moved = other.update_ratio  # None after steps at a learning rate of 0
        assert one.update_ratio == (None if moved is None else pytest.approx(moved, rel=1e-3))


def same_files(one: Path, other: Path) -> None:
    found, expected = (checkpoint.read(TrialPaths(path).best) for path in (one, other))
    assert found[0].keys() == expected[0].keys()
    for name, tensor in expected[0].items():
        torch.testing.assert_close(found[0][name], tensor, rtol=2e-4, atol=2e-5)
    assert found[1]["card"] == expected[1]["card"]
    assert found[1]["progress"] == expected[1]["progress"]
