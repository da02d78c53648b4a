from __future__ import annotations

import gc
import math
import random
import resource
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sft_tune.errors import DataError, TrialError, UserError
from sft_tune.spec.config import TrialConfig
from sft_tune.trial import loop, step
from sft_tune.trial.heads import in_head
from sft_tune.trial.load import load_checkpoint
from sft_tune.trial.outcome import Evaluation, Outcome

Configure = Callable[..., TrialConfig]


def test_a_trial_learns(runner: Any, digits: Configure) -> None:
    data = {"train_limit": 160, "validation_limit": 80}
    training = {"epochs": 5, "learning_rate": 0.01, "augment": "none"}
    outcome = runner.run(digits(data=data, training=training))
    assert outcome.reason == "completed"
    assert outcome.value > 0.6  # chance: 0.25
    assert outcome.steps == outcome.horizon == 100
    assert outcome.note == ""
    assert outcome.peak_memory > 10**7
    assert outcome.samples_per_second > 0
    assert not runner.paths.clear_resume() and sorted(
        path.name for path in runner.paths.root.iterdir()
    ) == ["best.safetensors"]


def test_rungs_are_at_their_places_with_their_numbers(runner: Any, digits: Configure) -> None:
    outcome = runner.run(digits(training={"schedule": "cosine", "warmup": 0.25}))
    seen = runner.evaluations
    assert [(e.progress, e.step, e.epoch) for e in seen] == [
        (25, 3, 0.5),
        (50, 6, 1.0),
        (75, 9, 1.5),
        (100, 12, 2.0),
    ]
    cosine = [(1 + math.cos(math.pi * t / 9)) / 2 * 0.003 for t in (2, 5, 8)]
    assert [e.learning_rate for e in seen] == pytest.approx([0.002, *cosine])
    assert all(e.horizon == 12 and e.gradient_norm > 0 and e.train_loss > 0 for e in seen)
    assert all(e.gradient_norm_max >= e.gradient_norm and 0 < e.update_ratio < 1 for e in seen)
    assert all(e.samples_per_second > 0 and e.memory > 2**20 for e in seen)
    assert all(set(e.metrics) == {"loss", "accuracy", "f1_macro"} for e in seen)
    seconds = [e.seconds for e in seen]
    assert seconds == sorted(seconds) and outcome.seconds >= seconds[-1] > 0


@pytest.mark.parametrize("metric", ["accuracy", "loss", "matthews"])
def test_the_best_rung_is_the_first_of_the_best(
    runner: Any, digits: Configure, metric: str
) -> None:
    config = digits(objective={"metric": metric, "rungs": 12}, training={"learning_rate": 0.02})
    outcome = runner.run(config)
    values = [e.metrics[metric] for e in runner.evaluations]
    wanted = min(values) if metric == "loss" else max(values)
    best = runner.evaluations[values.index(wanted)]
    assert (outcome.value, outcome.metrics, outcome.best_progress) == (
        wanted,
        best.metrics,
        best.progress,
    )


def test_an_objective_may_go_against_its_usual_direction(runner: Any, digits: Configure) -> None:
    config = digits(objective={"metric": "loss", "direction": "maximize"})
    outcome = runner.run(config)
    assert outcome.value == max(e.metrics["loss"] for e in runner.evaluations)


def test_a_trial_that_is_told_so_is_pruned(runner: Any, digits: Configure) -> None:
    outcome = runner.run(digits(), report=lambda e: e.progress < 50)
    assert (outcome.reason, outcome.steps) == ("pruned", 6)
    assert "50 %" in outcome.note
    assert outcome.value == max(e.metrics["accuracy"] for e in runner.evaluations)
    assert Path(outcome.checkpoint).is_file()


def test_a_verdict_at_the_end_prunes_nothing(runner: Any, digits: Configure) -> None:
    assert runner.run(digits(), report=lambda e: e.progress < 100).reason == "completed"


def test_a_loss_that_is_not_finite_ends_the_trial(runner: Any, digits: Configure) -> None:
    training = {"optimizer": "sgd", "learning_rate": 1e30, "clip_norm": None, "warmup": 0.0}
    outcome = runner.run(digits(training=training))
    assert outcome.reason == "diverged"
    assert "became" in outcome.note and "of 12" in outcome.note
    assert outcome.steps < 12
    assert (outcome.value, outcome.checkpoint, outcome.metrics) == (None, None, {})


def test_parameters_that_are_not_finite_end_the_trial_at_the_rung(
    runner: Any, digits: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(trainee: step.Trainee, at: int) -> Any:
        result = step.train_step(trainee, at)
        if at == 5:
            next(trainee.model.module.parameters()).data.fill_(float("nan"))
        return result

    monkeypatch.setattr(loop, "train_step", spoil)
    outcome = runner.run(digits())
    assert (outcome.reason, outcome.steps) == ("diverged", 6)
    assert "validation loss became nan at step 6 of 12" in outcome.note
    assert outcome.best_progress == 25


def test_the_same_seed_gives_the_same_bits_whatever_came_before(
    new_runner: Any, digits: Configure
) -> None:
    one, two, other = new_runner("one"), new_runner("two"), new_runner("other")
    one.run(digits())
    random.random(), np.random.rand(3), torch.rand(3)
    two.run(digits())
    other.run(digits(seed=4))
    assert one.numbers() == two.numbers()
    assert one.best() == two.best()
    assert one.numbers() != other.numbers()


def test_how_often_a_trial_is_evaluated_does_not_change_it(
    new_runner: Any, configure: Configure
) -> None:
    often, once = new_runner("often"), new_runner("once")
    often.run(configure(objective={"rungs": 10}))
    once.run(configure(objective={"rungs": 1}))
    assert len(often.evaluations) == 10
    assert often.evaluations[-1].metrics == once.evaluations[-1].metrics


def test_a_frozen_backbone_does_not_move(runner: Any, new_runner: Any, digits: Configure) -> None:
    start = runner.run(digits(), report=lambda _: False).checkpoint
    begun = load_file(start)
    frozen = new_runner("frozen")
    frozen.run(digits(model={"weights": start}, training={"freeze": "backbone"}))
    ended = load_file(frozen.paths.best)
    assert ended.keys() == begun.keys()
    moved = {name for name in begun if not torch.equal(begun[name], ended[name])}
    assert moved and all(in_head(name, ("head",)) for name in moved)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_every_optimizer_trains_in_mixed_precision(
    runner: Any, digits: Configure, optimizer: str, precision: str
) -> None:
    training = {"optimizer": optimizer, "precision": precision, "epochs": 1}
    data = {"train_limit": 16, "validation_limit": 8}
    outcome = runner.run(digits(training=training, data=data, objective={"rungs": 1}))
    assert outcome.reason == "completed"
    stored = load_file(outcome.checkpoint)
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float32}


def test_memory_that_runs_out_ends_the_trial_with_the_numbers(
    runner: Any, digits: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(trainee: step.Trainee, at: int) -> Any:
        if at == 7:
            torch.empty(2**50)
        return step.train_step(trainee, at)

    monkeypatch.setattr(loop, "train_step", greedy)
    outcome = runner.run(digits())
    assert (outcome.reason, outcome.steps) == ("out_of_memory", 7)
    assert outcome.value == max(e.metrics["accuracy"] for e in runner.evaluations)
    assert "after step 7" in outcome.note
    assert str(4 * 2**50) in outcome.note and "GiB" in outcome.note
    assert Path(outcome.checkpoint).is_file()


@pytest.mark.parametrize("ending", ["completed", "pruned", "out_of_memory"])
def test_a_trial_leaves_no_model_behind(
    runner: Any, digits: Configure, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    parameters: list[Any] = []

    def remember(trainee: step.Trainee, at: int) -> Any:
        parameters.extend(weakref.ref(p) for p in trainee.model.module.parameters())
        if at == 7 and ending == "out_of_memory":
            torch.empty(2**50)
        return step.train_step(trainee, at)

    monkeypatch.setattr(loop, "train_step", remember)
    gc.disable()
    try:
        outcome = runner.run(digits(), report=lambda e: ending != "pruned")
        assert outcome.reason == ending
        assert parameters and not [p for p in parameters if p() is not None]
    finally:
        gc.enable()


def test_any_other_error_is_not_taken_for_lack_of_memory(
    runner: Any, digits: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(trainee: step.Trainee, at: int) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loop, "train_step", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        runner.run(digits())


def on_a_full_disk(run: Callable[[Callable[[], None]], Outcome]) -> Outcome:
    """Run with a limit on files, which `run` sets when the disk is to be full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        return run(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_a_checkpoint_and_not_the_trial(runner: Any, digits: Configure) -> None:
    def run(fill: Callable[[], None]) -> Outcome:
        def report(evaluation: Evaluation) -> bool:
            if evaluation.progress == 50:
                fill()
            if evaluation.progress == 75:
                soft = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, soft))
            return True

        outcome: Outcome = runner.run(digits(), report=report)
        return outcome

    outcome = on_a_full_disk(run)
    assert outcome.reason == "completed"
    assert "no checkpoint after step 6" in outcome.note
    assert "File too large" in outcome.note
    assert not list(runner.paths.root.glob("*.tmp"))


def test_best_weights_that_cannot_be_written_are_an_error(runner: Any, digits: Configure) -> None:
    def run(fill: Callable[[], None]) -> Outcome:
        def report(evaluation: Evaluation) -> bool:
            if evaluation.progress == 100:
                fill()
            return True

        outcome: Outcome = runner.run(digits(), report=report)
        return outcome

    with pytest.raises(TrialError, match="best weights cannot be written.*free space"):
        on_a_full_disk(run)
    assert runner.paths.resume.exists() and not runner.paths.best.exists()


def test_a_checkpoint_stands_alone(runner: Any, digits: Configure) -> None:
    outcome = runner.run(digits())
    runner.paths.best.rename(runner.paths.root / "moved.safetensors")
    before = torch.get_rng_state()
    module = load_checkpoint(runner.paths.root / "moved.safetensors")
    assert torch.equal(before, torch.get_rng_state())
    assert module.labels == ("0", "1", "2", "3") and not module.training
    data = loop.prepare(digits().task, digits().data, digits().model, cache=runner.cache)
    pixels = torch.from_numpy(np.array(data.validation.pixels)).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in module.normalize)
    with torch.inference_mode():
        predicted = module((pixels - mean) / std).argmax(1).numpy()
    assert (predicted == data.validation.targets).mean() == outcome.metrics["accuracy"]


def test_texts_are_trained_on_as_well(runner: Any, sentences: Configure) -> None:
    outcome = runner.run(sentences(training={"epochs": 12, "learning_rate": 0.01}))
    assert outcome.reason == "completed"
    assert outcome.value > 0.9
    module = load_checkpoint(runner.paths.best)
    assert module.labels == ("neg", "pos")
    assert module.config.id2label == {0: "neg", 1: "pos"}
    assert module(input_ids=torch.tensor([[2, 5, 3]])).logits.shape == (1, 2)


def test_an_unknown_device_is_the_users_error(runner: Any, digits: Configure) -> None:
    for name in ("gpu0", "cuda:93"):
        with pytest.raises(UserError, match=name):
            runner.run(digits(), device=name)


def test_data_that_is_not_there_is_the_users_error(runner: Any, digits: Configure) -> None:
    with pytest.raises(DataError):
        runner.run(digits(data={"source": "no/such/folder"}))
