"""Seconds until a score is reached, as `to_target`: MiniLM fine-tuned on texts of mixed length.

The rivals' script is the one that tutorials show, every text padded to the admitted length. A seed
takes 20 minutes on 2 CPU cores, all rivals together.
"""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import Table
from tests.benchmarks.recorded import SPACE
from tests.benchmarks.to_target import Task, measure
from tests.benchmarks.work import SHARED, write_texts

MODEL = SHARED / "models" / "minilm-l6"
MAX_LENGTH = 256
LONGEST = 4


def run(short: bool) -> Table:
    """Search under 10 seeds for what 40 trials find (``short``: 1 for what 3 short ones find)."""
    return measure(TEXTS, short)


def _write_data(folder: Path, seed: int) -> None:
    """Write texts of 4 to 256 tokens, others for each seed."""
    write_texts(folder / "data", {"train": 48, "validation": 96}, seed)


TEXTS = Task(
    kind="texts",
    title="MiniLM on 48 texts of 4 to 256 tokens",
    space={
        **SPACE,
        "learning_rate": {"low": 1e-6, "high": 1e-2, "log": True},
        "batch_size": [4, 8, 16],
        "epochs": {"low": 1, "high": LONGEST, "step": 1},
    },
    weights=MODEL,
    study={
        "task": "text-classification",
        "model": {"name": f"transformers:{MODEL}"},
        "training": {"precision": "fp32"},
    },
    data={"max_length": MAX_LENGTH},
    longest=LONGEST,
    write=_write_data,
)
