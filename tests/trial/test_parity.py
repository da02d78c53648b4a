"""The same configuration through other people's loops: fifty steps, the same losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import gather, prepare
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import Trainee, set_up

Configure = Callable[..., TrialConfig]
CPU = torch.device("cpu")
STEPS = 50


def trainees(config: TrialConfig, cache: Path) -> tuple[Trainee, Trainee]:
    """Return two of ``config``: one for this package's loop, one to take apart."""
    data = prepare(config.task, config.data, config.model, cache=cache)
    pair = set_up(config, data, CPU), set_up(config, data, CPU)
    for trainee in pair:
        trainee.set_training_mode()
    return pair


def losses_of(trainee: Trainee) -> list[float]:
    return [train_step(trainee, step)[0].item() for step in range(STEPS)]


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "sgd", "nesterov": True, "schedule": "cosine", "weight_decay": 1e-3},
        {"optimizer": "adamw", "schedule": "linear", "label_smoothing": 0.1, "beta2": 0.99},
    ],
)
def test_images_train_as_in_a_plain_loop(
    digits: Configure, tmp_path: Path, training: dict[str, Any]
) -> None:
    settings = {"epochs": 9, "augment": "none", "warmup": 0.1, "learning_rate": 0.01, **training}
    config = digits(model={"dropout": None}, training=settings)
    ours, plain = trainees(config, tmp_path)
    module, plan = plain.model.module, plain.plan
    groups = [
        {"params": [p for p in module.parameters() if p.ndim > 1]},
        {"params": [p for p in module.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    decay = config.training.weight_decay
    if training["optimizer"] == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            groups, lr=0.01, momentum=0.9, nesterov=True, weight_decay=decay
        )
    else:
        optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99), weight_decay=decay)
    warm, horizon = round(0.1 * plan.horizon), plan.horizon

    def factor(step: int) -> float:
        if step < warm:
            return step / warm
        share = (step - warm) / (horizon - warm)
        cosine = 0.5 * (1 + np.cos(np.pi * share))
        return float(cosine) if training["schedule"] == "cosine" else 1 - share

    scheduler = LambdaLR(optimizer, factor)
    expected = []
    for step in range(STEPS):
        rows = plan.indices(step).numpy()
        pixels = torch.from_numpy(np.asarray(plain.data.train.pixels[rows])) / 255.0
        targets = torch.from_numpy(plain.data.train.targets[rows])
        smoothing = config.training.label_smoothing
        loss = functional.cross_entropy(
            module((pixels - 0.5) / 0.5), targets, label_smoothing=smoothing
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        expected.append(loss.item())
    # Rounding grows along the way, as gradients of batch norm are large.
    assert losses_of(ours) == pytest.approx(expected, rel=5e-3, abs=1e-3)
    assert sum(expected[-5:]) < sum(expected[:5])


def test_texts_train_as_in_transformers_trainer(sentences: Configure, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    config = sentences(
        training={"epochs": 10, "schedule": "linear", "warmup": 0.2, "weight_decay": 0.05},
    )
    ours, theirs = trainees(config, tmp_path / "prepared")
    for trainee in (ours, theirs):
        for part in trainee.model.module.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0  # attention's too, which model.dropout leaves alone
    plan, split = theirs.plan, theirs.data.train
    order = torch.cat([plan.indices(step) for step in range(STEPS)]).tolist()
    rows = [gather(split, torch.tensor([i]), CPU) for i in range(len(split))]
    examples = [
        {**{k: v[0] for k, v in row.inputs.items()}, "labels": row.targets[0]} for row in rows
    ]

    def collate(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        longest = max(len(example["input_ids"]) for example in batch)
        fill = {"input_ids": split.pad_id, "attention_mask": 0, "token_type_ids": 0}
        joined = {
            key: torch.stack(
                [
                    functional.pad(example[key], (0, longest - len(example[key])), value=value)
                    for example in batch
                ]
            )
            for key, value in fill.items()
            if key in batch[0]
        }
        return {**joined, "labels": torch.stack([example["labels"] for example in batch])}

    class InOurOrder(Trainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return order

    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=STEPS,
        per_device_train_batch_size=config.training.batch_size,
        learning_rate=config.training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=10,
        weight_decay=0.05,
        max_grad_norm=1.0,
        optim="adamw_torch",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = InOurOrder(
        model=theirs.model.module, args=arguments, train_dataset=examples, data_collator=collate
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    expected = [entry["loss"] for entry in logged]
    found = losses_of(ours)
    assert len(expected) == STEPS
    assert found == pytest.approx(expected, abs=2e-4)  # the trainer logs four decimals
    rates = [ours.learning_rate(step) for step in range(STEPS)]
    assert rates == pytest.approx([entry["learning_rate"] for entry in logged], rel=1e-6, abs=1e-12)
    assert expected[-1] < 0.7 * expected[0]
    weights = theirs.model.module.state_dict()
    for name, tensor in ours.model.module.state_dict().items():
        assert torch.allclose(tensor, weights[name], atol=1e-4), name
