"""Memory that runs out: the same trial in micro-batches, and nothing left of the failed tries.

Models are given torch's own error for allocating too much (`crowded`), or really too little.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import step
from sft_tune.trial import trainee as trainees
from sft_tune.trial.check import probe
from sft_tune.trial.data import Batch, prepare
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import Trainee, set_up

Configure = Callable[..., TrialConfig]
CPU = torch.device("cpu")
# Adam takes steps of one size along gradients that are rounding errors; SGD does not.
PLAIN = {"optimizer": "sgd", "learning_rate": 0.1}


def without_batch_norm(module: nn.Module) -> nn.Module:
    """Replace batch norm by a norm of each example, which has no buffers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(4, child.num_features))
        else:
            without_batch_norm(child)
    return module


class Crowd:
    """Runs out of memory after a forward pass of more than ``fits`` examples.

    After, not before: buffers have changed and random numbers are drawn by then.
    """

    def __init__(self, fits: int, training: bool = True) -> None:
        self.fits = fits
        self.training = training
        self.sizes: list[int] = []
        self.failures = 0

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if torch.is_inference_mode_enabled() is self.training:
            return
        self.sizes.append(len(next(iter((*args, *kwargs.values())))))
        if self.sizes[-1] > self.fits:
            self.failures += 1
            torch.empty(2**50)


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Crowd]:
    """Let every model that is built from here on be a `Crowd` (and have no batch norm)."""
    build = trainees.build_model

    def install(fits: int, *, training: bool = True, batch_norm: bool = True) -> Crowd:
        crowd = Crowd(fits, training)

        def built(*args: Any, **kwargs: Any) -> BuiltModel:
            model = build(*args, **kwargs)
            if not batch_norm:
                without_batch_norm(model.module)
            model.module.register_forward_hook(crowd, with_kwargs=True)
            return model

        monkeypatch.setattr(trainees, "build_model", built)
        return crowd

    return install


@pytest.fixture
def trainee_of(tmp_path: Path) -> Callable[[TrialConfig], Trainee]:
    def make(config: TrialConfig) -> Trainee:
        data = prepare(config.task, config.data, config.model, cache=tmp_path / "prepared")
        trainee = set_up(config, data, CPU)
        trainee.set_training_mode()
        return trainee

    return make


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """Keep every training batch, in the order that they are made."""
    batches: list[Batch] = []
    gather = step.gather

    def keep(*args: Any, **kwargs: Any) -> Batch:
        batches.append(gather(*args, **kwargs))
        return batches[-1]

    monkeypatch.setattr(step, "gather", keep)
    return batches


# one step


def gradients(trainee: Trainee, at: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Do step ``at``; return its loss, and the gradients that the optimizer was given."""
    found: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        parameters = trainee.model.module.named_parameters()
        found.update({name: p.grad.clone() for name, p in parameters if p.grad is not None})

    hook = trainee.optimizer.register_step_pre_hook(keep)
    loss, _, _ = train_step(trainee, at)
    hook.remove()
    return loss, found


@pytest.fixture
def doubled(
    crowded: Callable[..., Crowd], trainee_of: Any, digits: Configure, monkeypatch: Any
) -> Callable[..., Trainee]:
    """Make trainees in float64, over 45 examples: five batches of 8, and one of 5."""
    crowded(99, batch_norm=False)
    gather = step.gather

    def precise(*args: Any, **kwargs: Any) -> Batch:
        batch = gather(*args, **kwargs)
        inputs = {name: tensor.double() for name, tensor in batch.inputs.items()}
        return Batch(inputs, batch.targets)

    monkeypatch.setattr(step, "gather", precise)

    def make(limit: int | None, **training: Any) -> Trainee:
        config = digits(
            model={"dropout": None},
            data={"train_limit": 45},
            training={"clip_norm": None, **training},
        )
        trainee: Trainee = trainee_of(config)
        trainee.model.module.double()
        trainee.portion.limit = limit
        return trainee

    return make


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("limit", range(1, 8))
@pytest.mark.parametrize("at", [0, 5])
def test_gradients_are_the_batchs_own_in_any_micro_batches(
    doubled: Callable[..., Trainee], at: int, limit: int, smoothing: float
) -> None:
    loss, whole = gradients(doubled(None, label_smoothing=smoothing), at)
    loss_in_parts, in_parts = gradients(doubled(limit, label_smoothing=smoothing), at)
    assert loss_in_parts.item() == pytest.approx(loss.item(), rel=1e-13)
    assert in_parts.keys() == whole.keys()
    for name, gradient in whole.items():
        assert torch.allclose(in_parts[name], gradient, rtol=1e-11, atol=1e-15), name


@pytest.mark.parametrize("limit", [None, 8, 100])
def test_a_batch_that_fits_is_not_touched(
    trainee_of: Any, digits: Configure, limit: int | None
) -> None:
    """Bit for bit the mean loss of the batch and its gradients, dropout included."""
    ours, plain = (
        trainee_of(digits(training={"clip_norm": None, "label_smoothing": 0.1})) for _ in range(2)
    )
    state = torch.get_rng_state()
    batch = step.gather(
        plain.data.train,
        plain.plan.indices(0),
        CPU,
        augment="flip_crop",
        normalize=plain.model.normalize,
    )
    loss = functional.cross_entropy(
        plain.model.logits(batch.inputs), batch.targets, label_smoothing=0.1
    )
    loss.backward()
    torch.set_rng_state(state)
    ours.portion.limit = limit
    our_loss, found = gradients(ours, 0)
    assert torch.equal(our_loss, loss)
    for name, parameter in plain.model.module.named_parameters():
        assert torch.equal(found[name], parameter.grad), name


def test_failed_tries_leave_no_trace(
    crowded: Callable[..., Crowd], trainee_of: Any, digits: Configure
) -> None:
    """Batch norm, dropout and augmentation: as if the right micro-batch had been known."""
    config, states = digits(), []
    for known in (True, False):
        crowd = crowded(4)
        trainee = trainee_of(config)
        trainee.portion.limit = 4 if known else None
        for at in range(3):
            train_step(trainee, at)
        assert crowd.sizes == ([] if known else [8]) + [4] * 6
        states.append({**trainee.model.module.state_dict(), "random": torch.get_rng_state()})
    assert states[0]["norm.num_batches_tracked"] == 6
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_micro_batch_that_fails_after_others_takes_them_back(
    crowded: Callable[..., Crowd], trainee_of: Any, digits: Configure
) -> None:
    crowd, trainee = crowded(4), trainee_of(digits())
    trainee.portion.limit = 4
    second = trainee_of(digits())
    second.portion.limit = 2
    torch.manual_seed(7)
    _, calm = gradients(second, 0)

    def tighten(*_: object) -> None:
        if crowd.sizes[-1] == 4:
            crowd.fits = 3

    trainee.model.module.register_forward_hook(tighten)
    crowd.sizes.clear()
    torch.manual_seed(7)
    _, found = gradients(trainee, 0)
    assert crowd.sizes == [4, 4, 2, 2, 2, 2]
    assert all(torch.equal(found[name], calm[name]) for name in calm)


def test_batch_norm_is_not_given_single_examples_while_two_fit(
    crowded: Callable[..., Crowd], trainee_of: Any, digits: Configure
) -> None:
    crowd = crowded(3)
    trainee = trainee_of(digits(data={"train_limit": 21}))
    for at in range(3):
        train_step(trainee, at)
    assert crowd.sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2]


# a whole trial


def curve(runner: Any) -> dict[int, dict[str, float]]:
    return {
        progress: {
            "loss": record["metrics"]["loss"],
            "train_loss": record["train_loss"],
            "gradient_norm": record["gradient_norm"],
        }
        for progress, record in runner.numbers().items()
    }


@pytest.mark.parametrize("fits", [1, 3, 4])
def test_a_trial_in_micro_batches_is_the_same_trial(
    crowded: Callable[..., Crowd],
    new_runner: Any,
    configure: Configure,
    gathered: list[Batch],
    fits: int,
) -> None:
    # Batches of any lengths: those of similar ones have smaller gradients, hence more rounding.
    training = {**PLAIN, "label_smoothing": 0.1, "batching": "random"}
    config = configure(model={"dropout": 0.0}, training=training)
    crowded(99, batch_norm=False)
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    undisturbed = calm.run(config)
    batches = [*gathered]
    gathered.clear()

    crowd = crowded(fits, batch_norm=False)
    outcome = disturbed.run(config)
    size = {1: 1, 3: 2, 4: 4}[fits]
    assert crowd.failures == {1: 3, 3: 2, 4: 1}[fits]
    assert (undisturbed.note, undisturbed.flags) == ("", {})
    assert outcome.note == f"in micro-batches of {size}: batch 8 does not fit into memory"
    assert outcome.flags == {"micro_batch": size}
    assert (outcome.reason, outcome.steps) == ("completed", undisturbed.steps)
    for progress, numbers in curve(calm).items():
        assert curve(disturbed)[progress] == pytest.approx(numbers, rel=1e-3), progress
    # The same examples in the same order, augmented alike; the failed tries are the first.
    for ours, theirs in zip(gathered[-len(batches) :], batches, strict=True):
        assert torch.equal(ours.targets, theirs.targets)
        assert all(torch.equal(ours.inputs[name], theirs.inputs[name]) for name in ours.inputs)


def test_with_batch_norm_the_note_says_so(
    crowded: Callable[..., Crowd], runner: Any, digits: Configure
) -> None:
    crowded(4)
    outcome = runner.run(digits())
    assert outcome.reason == "completed"
    assert "in micro-batches of 4: batch 8 does not fit into memory" in outcome.note
    assert "batch norm normalized each micro-batch by itself" in outcome.note
    assert outcome.flags == {"micro_batch": 4, "batch_norm_per_micro_batch": True}


def test_a_frozen_batch_norm_is_the_same_in_micro_batches(
    crowded: Callable[..., Crowd], runner: Any, digits: Configure
) -> None:
    crowded(4)
    assert runner.run(digits(training={"freeze": "backbone"})).flags == {"micro_batch": 4}


def test_what_worked_comes_first_in_the_next_trial(
    crowded: Callable[..., Crowd], new_runner: Any, digits: Configure
) -> None:
    first = crowded(3)
    new_runner("first").run(digits())
    assert first.failures == 2
    second = crowded(3)
    outcome = new_runner("second").run(digits(training={"learning_rate": 0.01}))
    assert second.failures == 0
    assert max(second.sizes) == 2
    assert outcome.flags["micro_batch"] == 2


def test_a_torn_file_of_what_worked_is_no_matter(
    crowded: Callable[..., Crowd], new_runner: Any, digits: Configure
) -> None:
    crowded(4)
    runner = new_runner("first")
    runner.run(digits())
    (path,) = (runner.cache / "micro_batches").iterdir()
    path.write_bytes(path.read_bytes()[:5])
    crowd = crowded(4)
    assert new_runner("second").run(digits()).reason == "completed"
    assert crowd.failures == 1
    assert json.loads(path.read_text())["micro_batch"] == 4


def test_only_when_one_example_does_not_fit_the_trial_ends(
    crowded: Callable[..., Crowd], runner: Any, digits: Configure
) -> None:
    crowd = crowded(0)
    outcome = runner.run(digits())
    assert (outcome.reason, outcome.steps, outcome.value) == ("out_of_memory", 0, None)
    assert "after step 0" in outcome.note and str(4 * 2**50) in outcome.note
    assert crowd.sizes == [8, 4, 2, 1]
    assert not (runner.cache / "micro_batches").exists()


def test_evaluation_goes_in_smaller_batches_for_the_rest_of_the_trial(
    crowded: Callable[..., Crowd], new_runner: Any, digits: Configure
) -> None:
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    calm.run(digits())
    crowd = crowded(5, training=False)
    outcome = disturbed.run(digits())
    assert crowd.sizes[:2] == [16, 8] and crowd.failures == 2
    assert set(crowd.sizes[2:]) == {4}
    assert outcome.flags == {"evaluation_batch": 4}
    assert "evaluated in batches of 4" in outcome.note
    for ours, theirs in zip(disturbed.evaluations, calm.evaluations, strict=True):
        assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5)
        assert ours.train_loss == theirs.train_loss


def test_a_trial_that_is_resumed_goes_on_in_micro_batches(
    crowded: Callable[..., Crowd], new_runner: Any, digits: Configure
) -> None:
    crowded(4)
    calm, stopped = new_runner("calm"), new_runner("stopped")
    calm.run(digits())
    asked = iter([False] * 5 + [True])
    assert stopped.run(digits(), should_stop=lambda: next(asked)).reason == "stopped"
    outcome = stopped.run(digits())
    assert (outcome.resumed_from, outcome.flags["micro_batch"]) == (5, 4)
    assert stopped.numbers() == calm.numbers()
    assert stopped.best() == calm.best()


def test_a_probe_finds_the_micro_batch_for_the_trial(
    crowded: Callable[..., Crowd], runner: Any, digits: Configure
) -> None:
    crowded(10)
    facts = probe(digits(), [8, 32], device="cpu", cache=runner.cache)
    small, large = facts["batch_sizes"]
    assert (small["ok"], small["note"]) == (True, "")
    assert (large["ok"], large["note"]) == (True, "in micro-batches of 8")
    assert large["seconds_per_step"] > 0
    crowd = crowded(10)
    outcome = runner.run(digits(training={"batch_size": 32}))
    assert crowd.failures == 0
    assert outcome.flags["micro_batch"] == 8


def test_a_probe_says_when_not_even_one_example_fits(
    crowded: Callable[..., Crowd], digits: Configure, tmp_path: Path
) -> None:
    crowded(0)
    (facts,) = probe(digits(), [8], device="cpu", cache=tmp_path)["batch_sizes"]
    assert not facts["ok"]
    assert facts["note"].startswith("out of memory: ")


# The limit is on addresses: what the first trial has left mapped is not counted again, hence a
# fixed MALLOC_MMAP_THRESHOLD_, by which glibc unmaps what is freed. The model has no convolution:
# oneDNN does not check its own allocations, and a process then dies. Its scale needs a gradient,
# so that every layer keeps its output for the backward pass.
REALLY_TOO_LITTLE = """
import json, resource, sys, pathlib
import psutil, torch
from torch import nn
from sft_tune.spec.config import TrialConfig
from sft_tune.trial import trainee as trainees
from sft_tune.trial.loop import run_trial
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.paths import TrialPaths

class Hungry(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*[nn.Tanh() for _ in range(16)], nn.Flatten())
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(3 * 64 * 64, 10)

    def forward(self, pixels):
        return self.head(self.body(self.scale * pixels))

torch.set_num_threads(1)
trainees.build_model = lambda *_, **__: BuiltModel(Hungry(), ("head",), ((0.5,) * 3, (0.5,) * 3))
root = pathlib.Path(sys.argv[1])
config = TrialConfig.model_validate({
    "task": "image-classification",
    "data": {"source": "sklearn:digits", "image_size": 64,
             "train_limit": 300, "validation_limit": 16},
    "model": {"name": "builtin:convnet", "weights": "none"},
    "training": {"epochs": 2, "batch_size": 256, "optimizer": "sgd", "learning_rate": 0.01},
    "objective": {"rungs": 4},
    "seed": 1,
})

def run(name, config=config):
    torch.manual_seed(1)
    losses = []
    outcome = run_trial(
        config, TrialPaths(root / name), device="cpu", cache=root / "cache",
        report=lambda e: losses.append([e.train_loss, e.metrics["loss"]]) or True,
        should_stop=lambda: False, checkpoint_seconds=1e9, evaluation_batch_size=16,
    )
    return [outcome.reason, outcome.note, outcome.flags, losses]

# Small, so that all is imported and no memory of a whole batch is kept for the limited run.
run("small", config.model_copy(update={
    "training": config.training.model_copy(update={"batch_size": 8})}))
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, resource.RLIM_INFINITY))
limited = run("limited")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(json.dumps([run("calm"), limited]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits addresses as Linux does")
def test_memory_that_really_runs_out_is_recovered_from(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REALLY_TOO_LITTLE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)},
    )
    assert done.returncode == 0, done.stderr
    calm, limited = json.loads(done.stdout)
    assert calm[:3] == ["completed", "", {}]
    reason, note, flags, losses = limited
    assert reason == "completed", note
    assert 1 <= flags["micro_batch"] <= 128
    assert "batch 256 does not fit into memory" in note
    assert len(losses) == 4
    for ours, theirs in zip(losses, calm[3], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
