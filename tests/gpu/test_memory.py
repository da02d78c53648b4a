"""Memory on a real GPU: run out of, given back, resumed. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import trainee as trainees
from sft_tune.trial.check import probe
from sft_tune.trial.data.resident import release
from sft_tune.trial.loop import run_trial
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
    # Some versions want newer settings of TF32, of which others warn.
    pytest.mark.filterwarnings("ignore:Please use the new API settings"),
]

DEVICE = "cuda:0"
MEBIBYTE = 2**20
BATCH = 256


@pytest.fixture(autouse=True)
def _exact_and_unlimited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Multiply in full single precision; leave no limit on memory to the next test."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.fixture(autouse=True)
def _no_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm differs between splits, as it must; a norm of each example does not."""
    build = trainees.build_model

    def built(*args: Any, **kwargs: Any) -> BuiltModel:
        model = build(*args, **kwargs)
        _replace_batch_norm(model.module)
        return model

    monkeypatch.setattr(trainees, "build_model", built)


def _replace_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(4, child.num_features))
        else:
            _replace_batch_norm(child)


def configured(**training: Any) -> TrialConfig:
    """512 digits of 64x64: about 6 MiB of activations an example, 1.5 GiB a batch."""
    settings = {
        "task": "image-classification",
        "data": {
            "source": "sklearn:digits",
            "image_size": 64,
            "train_limit": 2 * BATCH,
            "validation_limit": 64,
        },
        "model": {"name": "builtin:convnet", "weights": "none"},
        "training": {
            "epochs": 3,
            "batch_size": BATCH,
            "optimizer": "sgd",
            "learning_rate": 0.05,
            "augment": "flip_crop",
            "precision": "fp32",
            **training,
        },
        "objective": {"rungs": 3},
        "seed": 3,
    }
    return TrialConfig.model_validate(settings)


Run = Callable[..., tuple[Outcome, list[Evaluation]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a trial in the folder ``name``; return its outcome and what it reported."""

    def trial(
        name: str,
        config: TrialConfig | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[Outcome, list[Evaluation]]:
        seen: list[Evaluation] = []

        def report(evaluation: Evaluation) -> bool:
            seen.append(evaluation)
            return True

        outcome = run_trial(
            config or configured(),
            TrialPaths(tmp_path / name),
            device=DEVICE,
            cache=tmp_path / "cache",
            report=report,
            should_stop=should_stop,
            checkpoint_seconds=0.0,
            evaluation_batch_size=32,
        )
        return outcome, seen

    return trial


def leave(mebibytes: int) -> None:
    """Let this process take only so much more of the GPU's memory than it holds now.

    Data that a trial before has left there goes: it would make room later.
    """
    release(torch.device(DEVICE))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    allowed = torch.cuda.memory_reserved(DEVICE) + mebibytes * MEBIBYTE
    torch.cuda.set_per_process_memory_fraction(allowed / total, DEVICE)


def check_same_curve(ours: list[Evaluation], theirs: list[Evaluation], rel: float) -> None:
    assert [e.step for e in ours] == [e.step for e in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=rel)
        assert one.metrics["loss"] == pytest.approx(other.metrics["loss"], rel=rel)


def test_memory_that_runs_out_is_recovered_with_the_same_curve(run: Run) -> None:
    whole, calm = run("calm")
    assert whole.flags == {}
    leave(mebibytes=max(64, whole.peak_memory // MEBIBYTE // 3))
    outcome, disturbed = run("disturbed")
    assert outcome.reason == "completed", outcome.note
    assert 1 <= outcome.flags["micro_batch"] < BATCH
    assert f"batch {BATCH} does not fit into memory" in outcome.note
    assert outcome.peak_memory < whole.peak_memory
    check_same_curve(disturbed, calm, rel=2e-3)


def test_what_worked_on_the_gpu_comes_first_next_time(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run("whole")
    leave(mebibytes=max(64, whole.peak_memory // MEBIBYTE // 3))
    first, _ = run("first")
    freed: list[object] = []
    from sft_tune.trial import portions

    monkeypatch.setattr(portions, "free_memory", freed.append)
    second, _ = run("second")
    assert second.flags == first.flags and "micro_batch" in second.flags
    assert not freed


def test_a_probe_under_a_limit_finds_a_micro_batch(tmp_path: Path) -> None:
    large = probe(configured(), [BATCH], device=DEVICE, cache=tmp_path)["batch_sizes"][0]
    leave(mebibytes=max(64, large["peak_memory"] // MEBIBYTE // 3))
    facts = probe(configured(), [BATCH], device=DEVICE, cache=tmp_path)["batch_sizes"][0]
    assert facts["ok"], facts["note"]
    assert facts["note"].startswith("in micro-batches of ")


def test_when_one_example_does_not_fit_the_trial_ends_and_says_so(run: Run) -> None:
    run("warm-up", configured(epochs=1))
    leave(mebibytes=2)
    outcome, _ = run("starved")
    assert outcome.reason == "out_of_memory"
    assert "GiB free" in outcome.note


@pytest.mark.parametrize("limited", [False, True])
def test_a_trial_gives_its_memory_back(run: Run, limited: bool) -> None:
    # The first trial leaves the libraries' own workspaces behind, the next ones nothing.
    whole, _ = run("warm-up")
    if limited:
        leave(mebibytes=max(64, whole.peak_memory // MEBIBYTE // 3))
    allocated, reserved = torch.cuda.memory_allocated(DEVICE), torch.cuda.memory_reserved(DEVICE)
    run("again")
    assert torch.cuda.memory_allocated(DEVICE) <= allocated
    assert torch.cuda.memory_reserved(DEVICE) <= reserved


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_trial_resumed_on_the_gpu_is_the_same_up_to_rounding(run: Run, precision: str) -> None:
    config = configured(precision=precision)
    _, calm = run("calm", config)
    asked = iter([False] * 3 + [True])
    stopped, before = run("stopped", config, should_stop=lambda: next(asked))
    assert stopped.reason == "stopped"
    resumed, after = run("stopped", config)
    assert (resumed.reason, resumed.resumed_from) == ("completed", 3)
    check_same_curve([*before, *after], calm, rel=1e-3 if precision == "fp32" else 2e-2)
