"""Heads on cached features: the numbers of the long way, and a complete model at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint, features, held_out
from sft_tune.trial.loop import run_trial
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths

TRAINING = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "freeze": "backbone"}


def run(
    config: TrialConfig,
    folder: Path,
    *,
    cached: bool,
    stop_after: int | None = None,
    refit_to: int | None = None,
) -> tuple[Outcome, list[Evaluation]]:
    seen: list[Evaluation] = []

    def report(evaluation: Evaluation) -> bool:
        seen.append(evaluation)
        return True

    outcome = run_trial(
        config,
        TrialPaths(folder),
        device="cpu",
        cache=folder.parent / "cache",
        report=report,
        should_stop=lambda: stop_after is not None and len(seen) >= stop_after,
        checkpoint_seconds=0.0,
        evaluation_batch_size=32,
        feature_cache=cached,
        refit_to=refit_to,
    )
    return outcome, seen


def real(shared: Path, kind: str, **training: Any) -> TrialConfig:
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
            "objective": {"rungs": 4},
            "seed": 3,
        }
    )


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
    long, expected = run(config, tmp_path / "long", cached=False)
    quick, found = run(config, tmp_path / "quick", cached=True)
    assert quick.flags == {"cached_features": True} and long.flags == {}
    assert [e.progress for e in found] == [e.progress for e in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.metrics == pytest.approx(other.metrics, rel=1e-3, abs=1e-4)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
    tensors, _ = checkpoint.read(TrialPaths(tmp_path / "quick").best)
    others, _ = checkpoint.read(TrialPaths(tmp_path / "long").best)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=1e-4)


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
    tensors, _ = checkpoint.read(TrialPaths(tmp_path / "first").best)
    others, _ = checkpoint.read(TrialPaths(tmp_path / "second").best)
    assert all(t.numpy().tobytes() == others[name].numpy().tobytes() for name, t in tensors.items())


@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_test_split_is_sent_through_the_backbone_once(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = real(shared, kind)
    run(config, tmp_path / "trial", cached=True)
    (built,) = (tmp_path / "cache" / "prepared").glob("*/train_features.npy")

    def tested() -> dict[str, float] | None:
        return held_out.test_metrics(
            config,
            TrialPaths(tmp_path / "trial").best,
            device="cpu",
            cache=tmp_path / "cache",
            batch_size=32,
        )

    with monkeypatch.context() as patch:
        patch.setattr(held_out, "use_features", lambda *_, **__: "")
        long = tested()
    kept, count = tested(), len(list(built.parent.parent.glob("*/test_features.npy")))
    assert count == 1 and not (built.parent / "test_features.npy").exists()
    assert long is not None and kept == pytest.approx(long, rel=1e-3, abs=1e-4)
    with monkeypatch.context() as patch:
        patch.setattr(features, "_write", lambda *_: pytest.fail("the features are there"))
        assert tested() == kept


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


def test_features_that_are_too_large_are_not_kept(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MOST_BYTES", 1000)
    outcome, _ = run(real(shared, "image"), tmp_path / "trial", cached=True)
    assert outcome.reason == "completed" and "cached_features" not in outcome.flags
    assert "features were not kept" in outcome.note
