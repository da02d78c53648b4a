"""Cross-validation: each fold is the trial of that fold, and the whole is their mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint
from sft_tune.trial.folds import run_folds
from sft_tune.trial.loop import run_trial
from sft_tune.trial.mirror import Mirror, open_mirror
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths

Configure = Callable[..., TrialConfig]


class Steps:
    """Says that the trial is to stop before the step ``stop_at``, counted over all folds."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.taken = 0
        self._stop_at = stop_at

    def __call__(self) -> bool:
        self.taken += 1
        return self.taken == self._stop_at


class Machine:
    """Trains folded configurations in a folder of its own, with or without a URL."""

    def __init__(self, folder: Path, cache: Path, url: str | None = None) -> None:
        self.paths = TrialPaths(folder)
        self.rungs: list[Evaluation] = []
        self._cache = cache
        self._url = url

    def run(
        self,
        config: TrialConfig,
        *,
        report: Callable[[Evaluation], bool] = lambda rung: True,
        steps: Steps | None = None,
    ) -> Outcome:
        self.paths.create()
        mirror = open_mirror(self._url, self.paths)
        should_stop = steps or Steps()

        def note(rung: Evaluation) -> bool:
            self.rungs.append(rung)
            return report(rung)

        def train(fold: TrialConfig, paths: TrialPaths, told: Any, part: Mirror | None) -> Outcome:
            return run_trial(
                fold,
                paths,
                device="cpu",
                cache=self._cache,
                report=told,
                should_stop=should_stop,
                checkpoint_seconds=0.0,
                evaluation_batch_size=64,
                mirror=part,
            )

        outcome = run_folds(config, self.paths, train, note, mirror)
        if mirror is not None:
            mirror.close(ended=outcome.reason != "stopped")
        return outcome


@pytest.fixture
def folded(digits: Configure) -> TrialConfig:
    """Three folds of 32 digits of four classes, one step an epoch: two steps a fold."""
    return digits(data={"folds": 3, "train_limit": 32, "validation_limit": None},
                  training={"batch_size": 32}, objective={"rungs": 2})  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Machine]:
    return lambda name, url=None: Machine(tmp_path / name, tmp_path / "cache", url)


def numbers(rungs: list[Evaluation]) -> list[Any]:
    return [(rung.progress, rung.step, rung.train_loss, rung.metrics) for rung in rungs]


def test_the_value_is_the_mean_of_the_folds_each_trained_alone(
    folded: TrialConfig, machine: Callable[..., Machine], tmp_path: Path
) -> None:
    whole = machine("whole")
    outcome = whole.run(folded)
    alone = []
    for fold in range(3):
        paths = TrialPaths(tmp_path / f"alone-{fold}").create()
        alone.append(
            run_trial(
                folded.of_fold(fold),
                paths,
                device="cpu",
                cache=tmp_path / "cache",
                report=lambda rung: True,
                should_stop=lambda: False,
                checkpoint_seconds=1e9,
                evaluation_batch_size=64,
            )  # fmt: skip
        )
    values = [one.value for one in alone if one.value is not None]
    assert outcome.value == fmean(values)
    assert outcome.metrics["loss"] == pytest.approx(fmean(one.metrics["loss"] for one in alone))
    assert len({one.metrics["loss"] for one in alone}) == 3  # other examples, other numbers
    kept = values.index(max(values))
    assert outcome.flags["folds"] == {
        "values": values,
        "deviation": stdev(values),
        "kept": kept,
        "metrics": alone[kept].metrics,
        "progress": alone[kept].best_progress,
    }
    assert (outcome.steps, outcome.horizon, outcome.best_progress) == (6, 6, None)
    assert [rung.progress for rung in whole.rungs] == [33, 67, 100]
    assert [rung.step for rung in whole.rungs] == [2, 4, 6]
    assert [rung.metrics for rung in whole.rungs] == [one.metrics for one in alone]
    tensors, header = checkpoint.read(whole.paths.best)
    assert header["card"]["config"]["data"]["fold"] == kept
    assert tensors and header["metrics"] == alone[kept].metrics
    whole.paths.clear_resume()
    assert [path.name for path in whole.paths.root.iterdir()] == ["best.safetensors"]


def test_folds_are_compared_on_all_of_their_validation(
    folded: TrialConfig, machine: Callable[..., Machine]
) -> None:
    part = folded.model_copy(
        update={"objective": folded.objective.model_copy(update={"evaluate": 4})}
    )
    ours = machine("part")
    outcome = ours.run(part)
    assert [rung.examples for rung in ours.rungs] == [None] * 3
    assert outcome.value == fmean(rung.metrics["accuracy"] for rung in ours.rungs)


def test_a_trial_that_is_stopped_anywhere_is_the_same_trial(
    folded: TrialConfig, machine: Callable[..., Machine]
) -> None:
    calm, disturbed = machine("calm"), machine("disturbed")
    wanted = calm.run(folded)
    for fold in range(3):  # once within each, after its first step
        outcome = disturbed.run(folded, steps=Steps(3 if fold else 2))
        assert (outcome.reason, outcome.steps) == ("stopped", 2 * fold + 1)
        assert f"in fold {fold + 1} of 3" in outcome.note
    outcome = disturbed.run(folded)
    assert (outcome.reason, outcome.resumed_from) == ("completed", 5)
    assert (outcome.value, outcome.metrics) == (wanted.value, wanted.metrics)
    # The last fold before each stop was told again; the dispatcher records it once.
    told = {rung.progress: rung for rung in disturbed.rungs}
    assert numbers([told[progress] for progress in sorted(told)]) == numbers(calm.rungs)


def test_a_trial_may_be_pruned_between_folds(
    folded: TrialConfig, machine: Callable[..., Machine]
) -> None:
    outcome = machine("pruned").run(folded, report=lambda rung: rung.progress < 67)
    assert (outcome.reason, outcome.note) == ("pruned", "after 2 of 3 folds")
    assert (outcome.steps, outcome.horizon, outcome.checkpoint) == (4, 6, None)
    assert len(outcome.flags["folds"]["values"]) == 2


def test_a_fold_that_diverges_ends_the_trial(
    folded: TrialConfig, machine: Callable[..., Machine]
) -> None:
    training = {**folded.training.model_dump(), "optimizer": "sgd", "learning_rate": 1e30}
    wild = TrialConfig.model_validate({**folded.model_dump(), "training": training})
    outcome = machine("wild").run(wild)
    assert (outcome.reason, outcome.value) == ("diverged", None)
    assert outcome.note.startswith("in fold 1 of 3: ")


def test_another_machine_goes_on_with_the_folds_that_are_done(
    folded: TrialConfig, machine: Callable[..., Machine], tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/elsewhere"
    wanted = machine("calm").run(folded)
    first = machine("first", url)
    assert first.run(folded, steps=Steps(4)).reason == "stopped"  # in the second fold
    assert not first.paths.root.exists()
    second = machine("second", url)
    outcome = second.run(folded)
    assert (outcome.reason, outcome.resumed_from) == ("completed", 3)
    assert (outcome.value, outcome.metrics) == (wanted.value, wanted.metrics)
    assert outcome.checkpoint == f"{url}/best.safetensors"
    assert (tmp_path / "elsewhere" / "best.safetensors").is_file()
