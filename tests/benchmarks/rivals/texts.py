"""The training of `to_target_texts` as tutorials show it: padded to the admitted length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.benchmarks.rivals.common import Texts, text_model
from tests.benchmarks.rivals.target import factor_of


def fine_tune(config: dict[str, Any], folder: Path, report: Callable[[float], None]) -> None:
    """Fine-tune the encoder by ``config``; ``report`` the validation accuracy of each epoch."""
    given = json.loads((folder / "work.json").read_text("utf8"))
    train_set, held_out_set = (
        Texts(folder / "data" / f"{split}.jsonl", given["model"], given["max_length"], padded=True)
        for split in ("train", "validation")
    )

    def collate(items: list[dict[str, Any]]) -> Any:
        return train_set.tokenizer.pad(items, return_tensors="pt")

    train = DataLoader(train_set, config["batch_size"], shuffle=True, collate_fn=collate)
    held_out = DataLoader(held_out_set, 32, collate_fn=collate)
    model = text_model(given["model"])
    loss_of = nn.CrossEntropyLoss(label_smoothing=config["label_smoothing"])
    optimizer = torch.optim.AdamW(
        model.parameters(), config["learning_rate"], weight_decay=config["weight_decay"]
    )
    steps = config["epochs"] * len(train)
    factor = factor_of(config["schedule"], config["epochs"], steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(config["epochs"]):
        model.train()
        for batch in train:
            labels = batch.pop("labels")
            optimizer.zero_grad()
            loss_of(model(**batch).logits, labels).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        right = 0
        with torch.no_grad():
            for batch in held_out:
                labels = batch.pop("labels")
                right += int((model(**batch).logits.argmax(1) == labels).sum())
        report(right / len(held_out_set))
