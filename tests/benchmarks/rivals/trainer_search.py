"""`Trainer.hyperparameter_search(backend="optuna")`, one trial after the other.

Texts are padded to the longest of their batch (`DataCollatorWithPadding`), images come from 2
workers; nothing is saved, which spares the Trainer what the others write.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import torch
from torch import Tensor, nn
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from tests.benchmarks.rivals.common import Texts, image_model, image_sets, main, text_model
from tests.benchmarks.work import Work


class WithLoss(nn.Module):
    """A ResNet-18 that answers as the Trainer wants: loss and logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.model(pixel_values)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def collate_images(items: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Return a batch by the names of the model's arguments."""
    images, labels = zip(*items, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.tensor(labels)}


def accuracy(predicted: Any) -> dict[str, float]:
    """Return the share of right answers."""
    return {"accuracy": float((predicted.predictions.argmax(1) == predicted.label_ids).mean())}


def search(work: Work, folder: Path) -> list[float]:
    """Train each learning rate; return the accuracies in their order."""
    rates, is_images = list(work.learning_rates), work.kind == "images"
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=work.epochs,
        per_device_train_batch_size=work.batch_size,
        per_device_eval_batch_size=work.batch_size,
        lr_scheduler_type="constant",
        optim="sgd" if is_images else "adamw_torch_fused",
        optim_args="momentum=0.9" if is_images else None,
        max_grad_norm=0.0 if is_images else 1.0,
        weight_decay=0.0,
        dataloader_num_workers=2 if is_images else 0,
        dataloader_pin_memory=False,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    if is_images:
        train, validation = image_sets(folder / "data")
        given: dict[str, Any] = {"data_collator": collate_images}
    else:
        train = Texts(folder / "data" / "train.jsonl", work, padded=False)
        validation = Texts(folder / "data" / "validation.jsonl", work, padded=False)
        given = {"data_collator": DataCollatorWithPadding(train.tokenizer)}
    found: dict[float, float] = {}

    def objective(metrics: dict[str, float]) -> float:
        found[trainer.args.learning_rate] = metrics["eval_accuracy"]
        return metrics["eval_accuracy"]

    trainer = Trainer(
        model_init=lambda: WithLoss(image_model(work)) if is_images else text_model(work),
        args=arguments,
        train_dataset=train,
        eval_dataset=validation,
        compute_metrics=accuracy,
        **given,
    )
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        compute_objective=objective,
        n_trials=len(rates),
        direction="maximize",
        backend="optuna",
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}, seed=0),
        pruner=optuna.pruners.NopPruner(),
    )
    return [found[rate] for rate in rates]


if __name__ == "__main__":
    main("trainer_search", search)
