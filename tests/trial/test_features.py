"""Heads on cached features: the numbers of the long way, and a complete model at the end."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint, features, held_out
from sft_tune.trial.loop import run_trial
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.throughput import throughput

TRAINING = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "freeze": "backbone"}


class KilledError(Exception):
    """Stands for the death of the process: nothing is saved on its way up."""


def run(
    config: TrialConfig,
    folder: Path,
    *,
    cached: bool,
    stop_after: int | None = None,
    kill_after: int | None = None,
    refit_to: int | None = None,
) -> tuple[Outcome, list[Evaluation]]:
    """Run ``config``, up to so many rungs where it is stopped, or so many steps where killed."""
    seen: list[Evaluation] = []
    asked = itertools.count()

    def report(evaluation: Evaluation) -> bool:
        seen.append(evaluation)
        return True

    def should_stop() -> bool:
        if next(asked) == kill_after:
            raise KilledError
        return stop_after is not None and len(seen) >= stop_after

    outcome = run_trial(
        config,
        TrialPaths(folder),
        device="cpu",
        cache=folder.parent / "cache",
        report=report,
        should_stop=should_stop,
        checkpoint_seconds=0.0,
        evaluation_batch_size=32,
        feature_cache=cached,
        refit_to=refit_to,
    )
    return outcome, seen


def real(
    shared: Path, kind: str, objective: dict[str, Any] | None = None, **training: Any
) -> TrialConfig:
    image = kind == "image"
    name = "cifar10" if image else "subjectivity"
    model = (
        {
            "name": "torchvision:resnet18",
            "weights": str(shared / "models" / "resnet18-cifar5.safetensors"),
        }
        if image
        else {"name": f"transformers:{shared / 'models' / 'minilm-l6'}"}
    )
    limits = {"train_limit": 72, "validation_limit": 40}
    return TrialConfig.model_validate(
        {
            "task": f"{kind}-classification",
            "data": {"source": str(shared / "data" / name), **limits}
            | ({} if image else {"max_length": 24}),
            "model": {**model, "dropout": 0.1},
            "training": {**TRAINING, **training},
            "objective": {"rungs": 4, **(objective or {})},
            "seed": 3,
        }
    )


def check_both_ways(config: TrialConfig, folder: Path) -> Outcome:
    """Compare every rung, and the best weights, with those of the long way."""
    long, expected = run(config, folder / "long", cached=False)
    quick, found = run(config, folder / "quick", cached=True)
    assert quick.flags == {"cached_features": True} and long.flags == {}
    assert [e.progress for e in found] == [e.progress for e in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-3, abs=1e-4)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
    assert quick.best_progress == long.best_progress
    tensors, _ = checkpoint.read(TrialPaths(folder / "quick").best)
    others, _ = checkpoint.read(TrialPaths(folder / "long").best)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=1e-4)
    return quick


def metrics_of_test(config: TrialConfig, folder: Path) -> dict[str, float] | None:
    return held_out.test_metrics(
        config,
        TrialPaths(folder).best,
        device="cpu",
        cache=folder.parent / "cache",
        batch_size=32,
    )


def bits(folder: Path) -> dict[str, bytes]:
    tensors, _ = checkpoint.read(TrialPaths(folder).best)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_a_refit_has_features_of_its_own(shared: Path, tmp_path: Path) -> None:
    """Its training split is another one, of as many examples as both."""
    config = real(shared, "text")
    run(config, tmp_path / "search", cached=True)
    _, expected = run(config, tmp_path / "long", cached=False, refit_to=100)
    quick, found = run(config, tmp_path / "quick", cached=True, refit_to=100)
    assert quick.flags == {"cached_features": True}
    assert [e.step for e in found] == [e.step for e in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_every_rung_has_the_numbers_of_the_long_way(
    shared: Path, tmp_path: Path, kind: str
) -> None:
    config = real(shared, kind)
    check_both_ways(config, tmp_path)


def test_a_second_trial_runs_no_backbone_and_a_resume_is_exact(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = real(shared, "image")
    _, expected = run(config, tmp_path / "first", cached=True)

    def never(*_: Any) -> None:
        raise RuntimeError("the features are there")

    monkeypatch.setattr(features, "_write", never)
    stopped, _ = run(config, tmp_path / "second", cached=True, stop_after=2)
    assert stopped.reason == "stopped"
    outcome, found = run(config, tmp_path / "second", cached=True)
    assert outcome.resumed_from > 0
    assert [e.metrics for e in found] == [e.metrics for e in expected[-len(found) :]]
    assert bits(tmp_path / "first") == bits(tmp_path / "second")


HEAD_FIRST = {"freeze": "head_first", "unfreeze_at": 0.5, "unfrozen_learning_rate": 1e-4}


@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_first_of_two_phases_has_the_numbers_of_the_long_way(
    shared: Path, tmp_path: Path, kind: str
) -> None:
    """The second begins with batch norms, moments and random numbers as the long way left them."""
    check_both_ways(real(shared, kind, **HEAD_FIRST), tmp_path)


def test_gradual_unfreezing_begins_on_features(sentences: Any, tmp_path: Path) -> None:
    gradual = {"freeze": "gradual", "unfreeze_at": 0.9, "epochs": 3, "learning_rate": 1e-4}
    check_both_ways(sentences(training=gradual), tmp_path)


@pytest.mark.parametrize("part", ["all", 24])
def test_the_best_of_the_first_phase_outlives_the_second(
    shared: Path, tmp_path: Path, part: int | str
) -> None:
    spoilt = {**HEAD_FIRST, "unfrozen_learning_rate": 0.05}
    config = real(shared, "image", objective={"metric": "loss", "evaluate": part}, **spoilt)
    outcome = check_both_ways(config, tmp_path)
    assert outcome.best_progress is not None and outcome.best_progress <= 50
    tensors, _ = checkpoint.read(TrialPaths(tmp_path / "quick").best)
    pretrained = load_file(str(config.model.weights))
    assert torch.equal(tensors["layer1.0.conv1.weight"], pretrained["layer1.0.conv1.weight"])
    assert torch.equal(tensors["bn1.running_mean"], pretrained["bn1.running_mean"])
    # What a trial has trained makes features for nobody else.
    assert metrics_of_test(config, tmp_path / "quick") is not None
    assert not list(tmp_path.glob("cache/prepared/*/test_features.npy"))


def test_a_trial_killed_in_either_phase_is_the_same_trial(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = real(shared, "image", **HEAD_FIRST)
    calm, expected = run(config, tmp_path / "calm", cached=True)
    monkeypatch.setattr(features, "_write", lambda *_: pytest.fail("the features are there"))
    for at, resumed in ((4, 3), (5, 5), (9, 8)):  # rungs are at steps 3, 5, 8 and 10
        folder = tmp_path / f"killed-{at}"
        with pytest.raises(KilledError):
            run(config, folder, cached=True, kill_after=at)
        outcome, found = run(config, folder, cached=True)
        assert (outcome.resumed_from, outcome.flags) == (resumed, calm.flags)
        assert [e.metrics for e in found] == [e.metrics for e in expected[-len(found) :]]
        assert bits(folder) == bits(tmp_path / "calm")


def test_a_short_first_phase_is_not_worth_features(shared: Path, tmp_path: Path) -> None:
    config = real(shared, "image", **{**HEAD_FIRST, "unfreeze_at": 0.2})
    outcome, _ = run(config, tmp_path / "trial", cached=True)
    assert outcome.flags == {} and not list(tmp_path.glob("cache/prepared/*/train_features.npy"))


@pytest.mark.parametrize(
    ("training", "kept"),
    [({}, True), (HEAD_FIRST, False), ({"augment": "flip"}, False)],
    ids=["frozen", "head_first", "augmented"],
)
def test_a_probe_of_speed_trains_what_a_trial_does(
    shared: Path, tmp_path: Path, training: dict[str, Any], kept: bool
) -> None:
    """And leaves its features to the trials."""
    config, made = real(shared, "image", **training), tmp_path / "cache" / "prepared"
    called: list[type] = []
    watching: list[Any] = []

    def armed() -> None:
        hook = lambda module, *_: called.append(type(module))  # noqa: E731
        watching.append(register_module_forward_hook(hook))

    try:
        rate = throughput(
            config, device="cpu", cache=tmp_path / "cache", threads=1, seconds=0.1, armed=armed
        )
    finally:
        watching[0].remove()
    assert rate > 0
    assert torch.nn.Linear in called and (torch.nn.BatchNorm2d in called) == (not kept)
    assert len(list(made.glob("*/train_features.npy"))) == kept
    run(config, tmp_path / "trial", cached=True)
    assert len(list(made.glob("*/train_features.npy"))) == (training.get("augment") is None)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_test_split_is_sent_through_the_backbone_once(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = real(shared, kind)
    run(config, tmp_path / "trial", cached=True)
    (built,) = (tmp_path / "cache" / "prepared").glob("*/train_features.npy")

    trial = tmp_path / "trial"
    with monkeypatch.context() as patch:
        patch.setattr(held_out, "use_features", lambda *_, **__: "")
        long = metrics_of_test(config, trial)
    kept, count = (
        metrics_of_test(config, trial),
        len(list(built.parent.parent.glob("*/test_features.npy"))),
    )
    assert count == 1 and not (built.parent / "test_features.npy").exists()
    assert long is not None and kept == pytest.approx(long, rel=1e-3, abs=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(features, "_write", lambda *_: pytest.fail("the features are there"))
        assert metrics_of_test(config, trial) == kept


@pytest.mark.parametrize(
    "training",
    [{"augment": "flip"}, {"mix": "mixup"}, {"averaging": "ema"}, {"color_jitter": 0.2}],
    ids=lambda given: next(iter(given)),
)
def test_what_changes_the_features_goes_the_long_way(
    shared: Path, tmp_path: Path, training: dict[str, Any]
) -> None:
    outcome, _ = run(real(shared, "image", **training), tmp_path / "trial", cached=True)
    assert "cached_features" not in outcome.flags
    ((name, value),) = training.items()
    told = f"the frozen backbone is run in every step, because of training.{name} ({value})"
    assert outcome.note == told


def test_features_that_are_too_large_are_not_kept(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MOST_BYTES", 1000)
    outcome, _ = run(real(shared, "image"), tmp_path / "trial", cached=True)
    assert outcome.reason == "completed" and "cached_features" not in outcome.flags
    assert "features were not kept" in outcome.note
