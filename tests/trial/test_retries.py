"""Where in a trial, and where in a step, memory may run out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import loop, step
from sft_tune.trial import trainee as trainees
from sft_tune.trial.data import gather, prepare
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.optimizers import build_optimizer
from sft_tune.trial.rewind import Rewind
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import Trainee, set_up

Configure = Callable[..., TrialConfig]
CPU = torch.device("cpu")


@pytest.fixture
def trainee_of(tmp_path: Path) -> Callable[[TrialConfig], Trainee]:
    def make(config: TrialConfig) -> Trainee:
        data = prepare(config.task, config.data, config.model, cache=tmp_path / "prepared")
        trainee = set_up(config, data, CPU)
        trainee.set_training_mode()
        return trainee

    return make


def run_out() -> None:
    torch.empty(2**50)


class Doubled(nn.Module):
    """Two layers in float64, with a gradient that every example has a part in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(192, 8).double()
        self.head = nn.Linear(8, 4).double()

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.body(pixels.double().flatten(1))))
        return logits


def stepped(trainee: Trainee, at: int, limit: int | None) -> tuple[float, float, dict[str, Tensor]]:
    """Return loss, gradient norm and weights after one step of a new `Doubled`."""
    half = (0.5, 0.5, 0.5)
    model = BuiltModel(Doubled(), ("head",), (half, half))
    mine = dataclasses.replace(
        trainee,
        model=model,
        optimizer=build_optimizer(model, trainee.config.training),
        rewind=Rewind(model.module, CPU),
        portion=dataclasses.replace(trainee.portion, limit=limit, in_pairs=False),
    )
    loss, norm, _ = train_step(mine, at)
    return float(loss), float(norm), model.module.state_dict()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    batch=st.integers(2, 13),
    limit=st.integers(1, 13),
    ragged=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    clip=st.sampled_from([None, 0.05]),
)
def test_any_split_of_any_batch_makes_the_same_step(
    trainee_of: Any,
    digits: Configure,
    batch: int,
    limit: int,
    ragged: bool,
    smoothing: float,
    clip: float | None,
) -> None:
    training = {
        "batch_size": batch,
        "optimizer": "sgd",
        "learning_rate": 0.5,
        "label_smoothing": smoothing,
        "clip_norm": clip,
        "warmup": 0.0,
        "augment": "none",
    }
    trainee = trainee_of(digits(training=training))
    at = trainee.plan.steps_per_epoch - 1 if ragged else 0
    loss, norm, weights = stepped(trainee, at, None)
    loss_in_parts, norm_in_parts, weights_in_parts = stepped(trainee, at, limit)
    assert loss_in_parts == pytest.approx(loss, rel=1e-12)
    assert norm_in_parts == pytest.approx(norm, rel=1e-12)
    for name, tensor in weights.items():
        assert torch.allclose(weights_in_parts[name], tensor, rtol=1e-12, atol=1e-14), name


@pytest.fixture
def greedy_backward(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let memory run out at the end of backward passes over more than 4 examples."""
    counts: list[int] = []
    logits = BuiltModel.logits

    def watched(self: BuiltModel, inputs: dict[str, Tensor]) -> Tensor:
        counts.append(len(next(iter(inputs.values()))))
        return logits(self, inputs)

    def greedy(gradient: Tensor) -> None:
        if counts[-1] > 4:
            run_out()

    build = trainees.build_model

    def built(*args: Any, **kwargs: Any) -> BuiltModel:
        model = build(*args, **kwargs)
        next(model.module.parameters()).register_hook(greedy)
        return model

    monkeypatch.setattr(trainees, "build_model", built)
    monkeypatch.setattr(BuiltModel, "logits", watched)
    yield counts


def test_a_backward_pass_that_failed_half_way_leaves_no_trace(
    greedy_backward: list[int], trainee_of: Any, digits: Configure
) -> None:
    states = []
    for limit in (4, None):
        trainee = trainee_of(digits())
        trainee.portion.limit = limit
        greedy_backward.clear()
        norms = [train_step(trainee, at)[1] for at in range(2)]
        assert greedy_backward == ([] if limit else [8]) + [4] * 4
        state = {**trainee.model.module.state_dict(), "random": torch.get_rng_state()}
        states.append({**state, "norms": torch.stack(norms)})
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("at", [1, 7, 11])
def test_memory_may_run_out_at_any_step(
    new_runner: Any, configure: Configure, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Others take memory in the middle of a trial: its curve goes on as it was."""
    training = {"optimizer": "sgd", "learning_rate": 0.1, "freeze": "backbone", "epochs": 3}
    config = configure(model={"dropout": 0.0}, training=training)
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    undisturbed = calm.run(config)
    left, logits, before = {"room": 99}, BuiltModel.logits, loop.train_step

    def crowded(self: BuiltModel, inputs: dict[str, Tensor]) -> Tensor:
        found = logits(self, inputs)
        if torch.is_grad_enabled() and len(found) > left["room"]:
            run_out()
        return found

    def steps(trainee: Trainee, number: int) -> Any:
        left["room"] = 3 if number >= at else 99
        return before(trainee, number)

    monkeypatch.setattr(BuiltModel, "logits", crowded)
    monkeypatch.setattr(loop, "train_step", steps)
    outcome = disturbed.run(config)
    assert outcome.reason == "completed"
    assert outcome.flags == {**undisturbed.flags, "micro_batch": 2}
    for progress, numbers in calm.numbers().items():
        again = disturbed.numbers()[progress]
        if numbers["step"] <= at:
            assert again == numbers
        assert again["train_loss"] == pytest.approx(numbers["train_loss"], rel=1e-5)
        assert again["gradient_norm"] == pytest.approx(numbers["gradient_norm"], rel=1e-4)
        assert again["metrics"] == pytest.approx(numbers["metrics"], rel=1e-5)


def test_what_a_step_draws_does_not_depend_on_the_split(trainee_of: Any, digits: Configure) -> None:
    """Without dropout: augmentation is drawn for the whole batch."""
    states = []
    for limit in (None, 4, 1):
        trainee = trainee_of(digits(model={"dropout": 0.0}))
        trainee.portion.limit = limit
        train_step(trainee, 0)
        states.append(torch.get_rng_state())
    assert all(torch.equal(states[0], state) for state in states)


def test_memory_that_runs_out_for_the_optimizer_is_not_tried_again(
    runner: Any, digits: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have moved some parameters by then, and smaller batches would not help it."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: run_out())
    outcome = runner.run(digits())
    assert (outcome.reason, outcome.steps, outcome.flags) == ("out_of_memory", 0, {})


def test_a_batch_that_does_not_fit_on_the_device_is_kept_beside_it(
    trainee_of: Any, digits: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device of this test has no room for a batch, though it does for its parts."""
    calm, full = trainee_of(digits()), trainee_of(digits())
    asked: list[str] = []

    def on_device(split: Any, indices: Tensor, device: Any, **options: Any) -> Any:
        batch = gather(split, indices, "cpu", **options)
        asked.append(str(device))
        if str(device) == "cuda:0":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch

    torch.manual_seed(1)
    expected = step._gathered(calm, torch.arange(8))
    after = torch.get_rng_state()
    monkeypatch.setattr(step, "gather", on_device)
    full.device = torch.device("cuda:0")
    torch.manual_seed(1)
    full.rewind.mark()
    found = step._gathered(full, torch.arange(8))
    assert asked == ["cuda:0", "cpu"]
    assert torch.equal(found.inputs["pixel_values"], expected.inputs["pixel_values"])
    assert torch.equal(torch.get_rng_state(), after)
    full.device = torch.device("meta")  # any but the batch's own
    parts = list(step._parts(found, [5, 3], full.device))
    assert [part.targets.shape for part in parts] == [(5,), (3,)]
    assert {part.inputs["pixel_values"].device.type for part in parts} == {"meta"}
