"""Losses and metrics of the tasks, against their formulas."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.tasks import MULTI_LABEL
from sft_tune.spec.tasks import TASKS as FACTS
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data import Batch, ImageSplit, Prepared, TextSplit
from sft_tune.trial.losses import IGNORED
from sft_tune.trial.tasks import TASKS, TrialTask, multi_label, regression, tagging

NUMBERS = torch.tensor([0.5, -1.0, 2.0, 0.0, 3.0])
MARKS = torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1], [1, 0]], dtype=torch.uint8)


def reference(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    if name == "marks":
        return functional.binary_cross_entropy_with_logits(outputs, targets.float())
    losses = {"mse": "mse_loss", "auto": "mse_loss", "mae": "l1_loss", "huber": "huber_loss"}
    found: Tensor = getattr(functional, losses[name])(outputs[:, 0], targets)
    return found


@pytest.mark.parametrize("sizes", [[5], [2, 3], [1, 1, 1, 2]])
@pytest.mark.parametrize("name", ["marks", "auto", "mse", "mae", "huber"])
def test_shares_add_up_to_the_loss_and_its_gradient(name: str, sizes: list[int]) -> None:
    marks = name == "marks"
    task: TrialTask = multi_label if marks else regression
    training = TrainingSpec() if marks else TrainingSpec(loss=name)  # type: ignore[arg-type]
    targets = MARKS if marks else NUMBERS
    outputs = torch.randn(5, 2 if marks else 1, generator=torch.Generator().manual_seed(1))
    whole, parts = (outputs.clone().requires_grad_() for _ in range(2))
    expected = reference(name, whole, targets)
    expected.backward()
    total = task.weight(Batch({}, targets))
    found = torch.zeros(())
    for some, share in zip(parts.split(sizes), targets.split(sizes), strict=True):
        found = found + task.share_of_loss(some, Batch({}, share), total, training)
    found.backward()
    assert torch.allclose(found, expected)
    assert whole.grad is not None and parts.grad is not None
    assert torch.allclose(parts.grad, whole.grad)


class Waits(TorchDispatchMode):
    """Counts what would wait for a device: to read a number, or how many places there are."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_marks = name == "index" and any(i is not None and i.dtype is torch.bool for i in args[1])
        self.count += name in ("_local_scalar_dense", "nonzero") or by_marks
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "waits"),
    [
        ("image-classification", (2, 5), (2,), 0),
        ("token-classification", (2, 7, 5), (2, 7), 0),
        ("semantic-segmentation", (2, 5, 4, 4), (2, 4, 4), 0),
        ("causal-lm", (2, 7, 5), (2, 7), 1),  # only what is learnt is copied: a vocabulary is large
    ],
)
def test_a_loss_hardly_waits_for_the_device(
    name: Any, outputs: tuple[int, ...], targets: tuple[int, ...], waits: int
) -> None:
    batch = Batch({}, torch.randint(0, 5, targets))
    task, seen = TASKS[name], Waits()
    logits = torch.randn(outputs, requires_grad=True)
    with seen:
        total = task.weight(batch)
        task.share_of_loss(logits, batch, total, TrainingSpec()).backward()
    assert seen.count == waits


def split_of(targets: Any) -> ImageSplit:
    return ImageSplit(np.zeros((len(targets), 3, 1, 1), np.uint8), targets)


def test_regression_is_measured_in_the_units_of_the_targets() -> None:
    split = split_of(np.array([-1.0, 0.0, 1.0], np.float32))
    data = Prepared(("x",), split, split, None, {}, {"mean": 100.0, "deviation": 10.0})
    kept = {"values": torch.tensor([[-1.0], [0.5], [1.0]])}
    found = regression.metrics(FACTS["text-regression"].metrics, kept, split, data)
    assert found == pytest.approx(
        {
            "loss": 0.25 / 3,
            "mse": 25 / 3,
            "rmse": (25 / 3) ** 0.5,
            "mae": 5 / 3,
            "r2": 1 - 25 / 200,
            "spearman": 1.0,
        }
    )
    kept = {"values": torch.zeros(3, 1)}
    assert regression.metrics(["spearman"], kept, split, data)["spearman"] == 0


def test_sets_of_labels_are_measured_label_by_label() -> None:
    split = split_of(MARKS.numpy())
    data = Prepared(("a", "b"), split, split, None, {})
    logits = torch.where(MARKS > 0, 2.0, -2.0)
    logits[0, 0] = -2.0  # one of five labels is missed
    found = multi_label.metrics(MULTI_LABEL, {"logits": logits}, split, data)
    assert found["accuracy"] == 0.8
    assert found["f1_micro"] == pytest.approx(8 / 9)
    assert found["f1_macro"] == pytest.approx((0.8 + 1) / 2)
    assert set(found) == set(MULTI_LABEL)


def test_every_task_of_the_study_file_is_registered() -> None:
    assert set(TASKS) == set(FACTS)


@pytest.mark.parametrize(
    ("task", "data", "metric"),
    [
        ("text-regression", {}, "rmse"),
        ("text-classification", {"multi_label": True}, "f1_micro"),
        ("token-classification", {}, "entity_f1"),
        ("text-classification", {"multi_label": True, "text_pair_column": "other"}, "f1_macro"),
    ],
)
def test_a_stopped_trial_goes_on_bit_for_bit(
    task: str,
    data: dict[str, Any],
    metric: str,
    sentences: Callable[..., TrialConfig],
    new_runner: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    rows = []
    for i in range(56):
        label: Any = ["a"] * (i % 2) + ["b"] * (i % 3 == 0) if "multi_label" in data else i % 7
        rows.append(
            {"text": f"{'good' if i % 2 else 'bad'} film", "other": "a plot", "label": label}
        )
    if task == "token-classification":
        tags = (["B-PER", "O"], ["O", "B-LOC"])
        rows = [
            {"tokens": ["good", "film"][: 1 + i % 2], "ner_tags": tags[i % 3 % 2][: 1 + i % 2]}
            for i in range(56)
        ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = sentences(
        task=task, data={"source": str(source), **data}, objective={"metric": metric}
    )
    whole, broken = new_runner("whole"), new_runner("broken")
    assert whole.run(config).reason == "completed"
    left = iter(range(4))

    def stop() -> bool:
        return next(left, None) is None

    assert broken.run(config, should_stop=stop).reason == "stopped"
    outcome = broken.run(config)
    assert outcome.reason == "completed" and outcome.resumed_from == 4
    assert broken.numbers() == whole.numbers()
    assert broken.best()[0] == whole.best()[0]
    assert {metric, "loss"} <= set(outcome.metrics)


def tagged(labels: tuple[str, ...], true: list[list[str]]) -> tuple[TextSplit, Prepared]:
    """Return a split whose words are all one piece, between two special tokens."""
    flat, offsets = [], [0]
    for row in true:
        flat += [IGNORED, *(labels.index(tag) for tag in row), IGNORED]
        offsets.append(len(flat))
    split = TextSplit(
        tokens=np.zeros(len(flat), np.int32),
        offsets=np.array(offsets),
        targets=np.array([len(row) for row in true]),
        pad_id=0,
        tags=np.array(flat, np.int32),
    )
    return split, Prepared(labels, split, split, None, {})


def test_entities_are_counted_whole_as_conlleval_does() -> None:
    # The example of seqeval's documentation: one of two entities is found whole.
    labels = ("O", "B-MISC", "B-PER", "I-MISC", "I-PER")
    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    guess = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    split, data = tagged(labels, true)
    logits = torch.zeros(2, 9, 5)
    targets = torch.full((2, 9), IGNORED)
    for i, (row, found) in enumerate(zip(true, guess, strict=True)):
        for j, (tag, answer) in enumerate(zip(row, found, strict=True), start=1):
            targets[i, j] = labels.index(tag)
            logits[i, j, labels.index(answer)] = 5.0
    kept = tagging.keep(logits, Batch({}, targets))
    found = tagging.metrics(FACTS["token-classification"].metrics, kept, split, data)
    assert (found["entity_f1"], found["entity_precision"], found["entity_recall"]) == (0.5,) * 3
    assert found["accuracy"] == 0.9 - 0.1
    expected = functional.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED)
    assert found["loss"] == pytest.approx(float(expected))


@pytest.mark.parametrize("sizes", [[3], [1, 2], [1, 1, 1]])
def test_token_losses_are_shared_out_by_counted_tokens(sizes: list[int]) -> None:
    targets = torch.tensor([[1, IGNORED, IGNORED], [0, 1, 2], [2, 2, IGNORED]])
    outputs = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))
    total = tagging.weight(Batch({}, targets))
    assert total == 6
    found = sum(
        tagging.share_of_loss(some, Batch({}, part), total, TrainingSpec())
        for some, part in zip(outputs.split(sizes), targets.split(sizes), strict=True)
    )
    expected = functional.cross_entropy(outputs.transpose(1, 2), targets, ignore_index=IGNORED)
    assert torch.allclose(torch.as_tensor(found), expected)
