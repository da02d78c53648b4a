"""Trials per hour on texts of mixed length: MiniLM of ../shared fine-tuned, at most 256 tokens.

12 fine-tunings of 160 texts take 20 minutes on 2 CPU cores, all rivals together;
SFT_TUNE_BENCHMARK_TRIALS=4 measures fewer of them, with a larger share for the start.
See `tests.benchmarks.side_by_side` for what is held equal.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks import Table
from tests.benchmarks.rivals.common import Texts, text_model
from tests.benchmarks.side_by_side import compare, trials
from tests.benchmarks.work import SHARED, Work

TARGETS = {"optuna_script": 3.0, "trainer_search": 2.0}


def run(short: bool) -> Table:
    """Measure 12 fine-tunings (``short``: 2 tiny ones)."""
    count = 2 if short else trials(12)
    work = Work(
        kind="texts",
        model=str(SHARED / "models" / "minilm-l6"),
        learning_rates=[float(rate) for rate in np.geomspace(1e-4, 4e-4, count)],
        epochs=1,
        batch_size=8,
        train=16 if short else 160,
        validation=8 if short else 40,
        max_length=48 if short else 256,
    )
    return compare(
        work,
        {"optimizer": "adamw", "clip_norm": 1.0},
        lambda folder: samples_per_second(work, folder),
        {} if short else TARGETS,
    )


def samples_per_second(work: Work, folder: Path) -> float:
    """Train on batches of texts of equal length, the whole split sorted, with fused AdamW."""
    texts = Texts(folder / "data" / "train.jsonl", work, padded=False)
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]["input_ids"]))
    groups = [order[i : i + work.batch_size] for i in range(0, len(order), work.batch_size)]
    batches = [
        texts.tokenizer.pad([texts[index] for index in group], return_tensors="pt")
        for group in groups
    ]
    model = text_model(work).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)

    def step(batch: dict[str, torch.Tensor]) -> None:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    step(batches[-1])
    begun = time.monotonic()
    for batch in batches:
        step(batch)
    return len(order) / (time.monotonic() - begun)
