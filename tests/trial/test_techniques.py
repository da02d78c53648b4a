"""Each technique changes what its formula says: the loss of a known batch, its gradient, a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.class_loss import ClassLoss, class_loss, divergence
from sft_tune.trial.data import Batch, gather, prepare
from sft_tune.trial.mixing import mixed
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import Trainee, set_up

Configure = Callable[..., TrialConfig]
CPU = torch.device("cpu")
LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.0], [0.0, 0.0, 3.0], [1.0, 2.0, 0.0]])
TARGETS = torch.tensor([0, 2, 2, 1])


@pytest.fixture
def trainee_of(tmp_path: Path) -> Callable[[TrialConfig], Trainee]:
    def make(config: TrialConfig) -> Trainee:
        data = prepare(config.task, config.data, config.model, cache=tmp_path / "prepared")
        trainee = set_up(config, data, CPU)
        trainee.set_training_mode()
        return trainee

    return make


# losses


def loss_of(kind: ClassLoss) -> Tensor:
    return kind.share(LOGITS, TARGETS, kind.total(TARGETS))


def focal(gamma: float, weights: Tensor) -> Tensor:
    p = LOGITS.softmax(dim=1)[range(4), TARGETS]
    w = weights[TARGETS]
    return (w * (1 - p) ** gamma * -p.log()).sum() / w.sum()


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.5]])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_loss_of_a_batch_is_its_formula(gamma: float, weights: list[float] | None) -> None:
    given_weights = None if weights is None else torch.tensor(weights)
    kind = ClassLoss(gamma=gamma, weights=given_weights)
    expected = focal(gamma, torch.ones(3) if given_weights is None else given_weights)
    assert loss_of(kind).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_losses_are_torchs(smoothing: float) -> None:
    weights = torch.tensor([0.5, 1.0, 2.5])
    expected = functional.cross_entropy(LOGITS, TARGETS, weight=weights, label_smoothing=smoothing)
    kind = ClassLoss(label_smoothing=smoothing, weights=weights)
    assert loss_of(kind).item() == pytest.approx(expected.item(), rel=1e-6)


def test_balanced_weights_are_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    targets = np.array([0] * 6 + [1] * 3 + [2], dtype=np.int64)
    kind = class_loss(TrainingSpec(class_weights="balanced"), targets, 3, CPU)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    assert kind.weights is not None
    assert kind.weights.tolist() == pytest.approx(expected.tolist())
    assert class_loss(TrainingSpec(class_weights="balanced"), targets, 4, CPU).weights[3] == 0


def test_a_certain_example_has_a_finite_gradient() -> None:
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    ClassLoss(gamma=0.5).share(logits, torch.tensor([0]), 1).backward()
    assert torch.isfinite(logits.grad).all()


def test_divergence_is_the_mean_of_both_directions() -> None:
    other = LOGITS.flip(0)
    p, q = LOGITS.log_softmax(1), other.log_softmax(1)
    there = functional.kl_div(q, p, log_target=True, reduction="sum")
    back = functional.kl_div(p, q, log_target=True, reduction="sum")
    assert divergence(LOGITS, other).item() == pytest.approx((there + back).item() / 2, rel=1e-6)
    assert divergence(LOGITS, LOGITS).item() == 0


# mixing


def batch_of(side: int = 8) -> Batch:
    pixels = torch.arange(4.0)[:, None, None, None].expand(4, 3, side, side).contiguous()
    return Batch({"pixel_values": pixels}, torch.arange(4))


@given(
    seed=st.integers(0, 1000), alpha=st.floats(0.1, 10), kind=st.sampled_from(["mixup", "cutmix"])
)
def test_pixels_and_targets_are_mixed_in_the_same_shares(
    seed: int, alpha: float, kind: Any
) -> None:
    torch.manual_seed(seed)
    batch = batch_of()
    mix = mixed(batch, TrainingSpec(mix=kind, mix_alpha=alpha))
    assert mix.partners is not None and sorted(mix.partners.tolist()) == [0, 1, 2, 3]
    assert 0 <= mix.share <= 1
    # Every image holds one number, its own target: what is mixed of both must agree.
    mean = mix.inputs["pixel_values"].mean(dim=(1, 2, 3))
    expected = mix.share * batch.targets + (1 - mix.share) * mix.partners
    assert torch.allclose(mean, expected, atol=1e-5)
    if kind == "cutmix":
        pure = torch.stack([batch.targets, mix.partners], dim=1).float()
        values = mix.inputs["pixel_values"].flatten(1)
        assert all(set(v.tolist()) <= set(p.tolist()) for v, p in zip(values, pure, strict=True))


def test_the_loss_of_a_mixed_batch_is_that_of_soft_targets(digits: Any, trainee_of: Any) -> None:
    trainee = trainee_of(digits(model={"dropout": None}, training={"mix": "mixup"}))
    twin = copy.deepcopy(trainee.model.module)
    state = torch.get_rng_state()
    loss, _, _ = train_step(trainee, 0)
    torch.set_rng_state(state)
    rows = trainee.plan.indices(0)
    options = {"augment": "flip_crop", "normalize": trainee.model.normalize}
    plain = gather(trainee.data.train, rows, CPU, **options)
    mix = mixed(plain, trainee.config.training)
    one_hot = functional.one_hot(mix.targets, 4), functional.one_hot(mix.partners, 4)
    soft = mix.share * one_hot[0] + (1 - mix.share) * one_hot[1]
    expected = functional.cross_entropy(twin(mix.inputs["pixel_values"]), soft)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# gradients


def without_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(4, child.num_features))
        else:
            without_batch_norm(child)


def gradients(trainee: Trainee, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Return the gradients that step 0 gives the optimizer."""
    found: dict[str, Tensor] = {}

    def keep(*_: Any, **__: Any) -> None:
        for name, p in trainee.model.module.named_parameters():
            found[name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()

    monkeypatch.setattr(trainee.optimizer, "step", keep)
    train_step(trainee, 0)
    return found


TECHNIQUES: dict[str, dict[str, Any]] = {
    "plain": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "class_weights": {"class_weights": "balanced"},
    "focal": {"focal_gamma": 2.0},
    "focal of weighted classes": {"focal_gamma": 1.5, "class_weights": "balanced"},
    "l1": {"l1": 0.01},
    "r_drop": {"r_drop": 1.0},
    "mixup": {"mix": "mixup"},
    "cutmix of weighted classes": {"mix": "cutmix", "class_weights": "balanced"},
    "clip_value": {"clip_value": 1e-3},
}


@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_accumulated_gradients_are_the_whole_batchs(
    digits: Any, trainee_of: Any, monkeypatch: Any, name: str, micro_batch: int
) -> None:
    config = {"clip_norm": None, **TECHNIQUES[name]}
    both = []
    for limit in (None, micro_batch):
        trainee = trainee_of(
            digits(model={"dropout": None}, training={**config, "micro_batch": limit})
        )
        without_batch_norm(trainee.model.module)
        trainee.optimizer = type(trainee.optimizer)(
            [{"params": [p], "l1": config.get("l1", 0.0), "multiplier": 1.0}
             for p in trainee.model.module.parameters()]
        )  # fmt: skip
        torch.manual_seed(0)
        both.append(gradients(trainee, monkeypatch))
    for key in both[0]:
        assert torch.allclose(both[0][key], both[1][key], rtol=1e-4, atol=1e-6), key


def test_clipping_by_value_and_then_by_norm(digits: Any, trainee_of: Any, monkeypatch: Any) -> None:
    options = {"model": {"dropout": None}}
    free = gradients(trainee_of(digits(training={"clip_norm": None}, **options)), monkeypatch)
    cut = {"clip_norm": None, "clip_value": 0.01}
    clipped = gradients(trainee_of(digits(training=cut, **options)), monkeypatch)
    assert all(torch.equal(clipped[k], free[k].clamp(-0.01, 0.01)) for k in free)
    both = gradients(
        trainee_of(digits(training={**cut, "clip_norm": 0.05}, **options)), monkeypatch
    )
    norm = torch.cat([g.flatten() for g in both.values()]).norm()
    assert norm.item() == pytest.approx(0.05, rel=1e-3)


def test_checkpointed_activations_change_neither_gradients_nor_statistics(
    digits: Any, sentences: Any, trainee_of: Any, monkeypatch: Any
) -> None:
    for make in (digits, sentences):
        found, buffers, draws = [], [], []
        for saved in (False, True):
            trainee = trainee_of(make(training={"gradient_checkpointing": saved}))
            found.append(gradients(trainee, monkeypatch))
            buffers.append(dict(trainee.model.module.named_buffers()))
            draws.append(torch.rand(3))
        assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
        assert all(torch.equal(buffers[0][k], buffers[1][k]) for k in buffers[0])
        assert torch.equal(*draws)


def test_checkpointed_blocks_run_twice(digits: Any, trainee_of: Any) -> None:
    trainee, runs = trainee_of(digits(training={"gradient_checkpointing": True})), []
    trainee.model.module.blocks[0].conv1.register_forward_hook(lambda *_: runs.append(1))
    train_step(trainee, 0)
    assert len(runs) == 2


def test_r_drop_passes_twice_and_adds_the_divergence(sentences: Any, trainee_of: Any) -> None:
    trainee, seen = trainee_of(sentences(training={"r_drop": 2.0})), []
    trainee.model.module.register_forward_hook(lambda *args: seen.append(args[-1].logits.detach()))
    loss, _, size = train_step(trainee, 0)
    targets = torch.from_numpy(trainee.data.train.targets[trainee.plan.indices(0).numpy()])
    entropies = [functional.cross_entropy(logits, targets) for logits in seen]
    assert len(seen) == 2 and not torch.equal(*seen)
    expected = sum(entropies) / 2 + 2.0 * divergence(*seen) / size
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# whole trials


@pytest.mark.parametrize(
    "training",
    [
        {"mix": "cutmix", "class_weights": "balanced", "micro_batch": 3},
        {"r_drop": 1.0, "focal_gamma": 2.0, "gradient_checkpointing": True, "optimizer": "lion"},
        {"optimizer": "adafactor", "schedule": "one_cycle", "clip_value": 0.1, "mix": "mixup"},
    ],
)
def test_a_trial_stopped_at_every_step_is_the_same(
    new_runner: Any, digits: Configure, training: dict[str, Any]
) -> None:
    config = digits(training=training)
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    ended = calm.run(config)
    assert ended.note == "" and ended.flags == {}
    for at in range(ended.steps):
        asked = iter([False] * min(at, 1) + [True])
        disturbed.run(config, should_stop=lambda asked=asked: next(asked), checkpoint_seconds=1e9)
    disturbed.run(config)
    assert disturbed.numbers() == calm.numbers()
    assert disturbed.best() == calm.best()
