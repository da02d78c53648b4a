"""The same work done by `sft-tune start` and by what a user would otherwise run.

Each is a whole process, from its start to its end, one after the other on the quiet machine:
the same fine-tunings with the same data, steps, batch size, precision, optimizer and number of
evaluations, none pruned. Only ours keeps the best weights of each on disk. The limit is a loop
that does nothing but train: no start, no evaluation, no file.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sft_tune.store import reads
from sft_tune.store.database import Database
from tests.benchmarks import Table
from tests.benchmarks.work import Work

ROOT = Path(__file__).resolve().parents[2]
RIVALS = {
    "optuna_script": "Optuna, plain script",
    "trainer_search": "Trainer search, Optuna",
    "ray_tune": "Ray Tune, FIFO, 2 at once",
}
LARGER = "SFT_TUNE_BENCHMARK_TRIALS"
"""Environment variable: how many fine-tunings, for a larger run than the usual one."""


def trials(usual: int) -> int:
    """Return how many fine-tunings are asked for."""
    return int(os.environ.get(LARGER, usual))


def compare(
    work: Work, training: dict[str, Any], limit: Callable[[Path], float], targets: dict[str, float]
) -> Table:
    """Let everyone do ``work``.

    Args:
        work: what is to be done.
        training: settings of our study file beside those that ``work`` has.
        limit: measures the samples per second of the best plain loop, given the work's folder.
        targets: how many times faster than a rival ours is to be; empty: nothing is judged.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work.write(folder)
        found = {"sft_tune": _ours(work, training, folder)}
        for rival in RIVALS:
            found[rival] = _rival(rival, folder)
        most = limit(folder)
    seconds, count = {name: one[0] for name, one in found.items()}, len(work.learning_rates)
    rows = [
        (
            RIVALS.get(name, "sft-tune start"),
            f"{spent:.1f} s",
            f"{3600 * count / spent:.0f}",
            f"{spent / seconds['sft_tune']:.2f}",
            f"{work.samples() / spent:.1f}",
            f"{statistics.mean(accuracies):.3f}",
            f"{max(accuracies):.3f}",
        )
        for name, (spent, accuracies) in found.items()
    ]
    rows.append(("limit: training alone", "-", "-", "-", f"{most:.1f}", "-", "-"))
    missed = [
        f"{RIVALS[name]}: ours is to be {times} times faster, it is "
        f"{seconds[name] / seconds['sft_tune']:.2f} times"
        for name, times in targets.items()
        if seconds[name] < times * seconds["sft_tune"]
    ]
    return Table(
        title=f"{count} fine-tunings of {work.epochs} x {work.train} {work.kind}, batch "
        f"{work.batch_size}, evaluated on {work.validation} after each epoch, single precision",
        columns=("", "wall", "trials/h", "of ours", "samples/s", "mean acc.", "best acc."),
        rows=rows,
        notes=[
            "wall: of the whole process; samples/s: training examples over that time; accuracies: "
            "of the last epochs, to see that all learn the same",
            *(f"MISSED: {line}" for line in missed),
        ],
        met=not missed if targets else None,
    )


def _ours(work: Work, training: dict[str, Any], folder: Path) -> tuple[float, list[float]]:
    """Run the study; return its seconds and the accuracies."""
    first, *others = work.learning_rates
    prefix = "torchvision:resnet18" if work.kind == "images" else f"transformers:{work.model}"
    weights = {"weights": work.model} if work.kind == "images" else {}
    limit = {} if work.kind == "images" else {"max_length": work.max_length}
    content = {
        "name": "throughput",
        "task": "image-classification" if work.kind == "images" else "text-classification",
        "data": {"source": str(folder / "data"), **limit},
        "model": {"name": prefix, **weights},
        "training": {
            "epochs": work.epochs,
            "batch_size": work.batch_size,
            "learning_rate": first,
            "schedule": "constant",
            "warmup": 0.0,
            "weight_decay": 0.0,
            "precision": "fp32",
            **training,
        },
        "space": {"learning_rate": list(work.learning_rates)},
        "objective": {"metric": "accuracy", "rungs": work.epochs},
        "sampler": {"name": "random", "enqueue": [{"learning_rate": rate} for rate in others]},
        "pruner": {"name": "none"},
        "budget": {"trials": len(work.learning_rates)},
        "resources": {"devices": "cpu"},
    }
    path, storage = folder / "study.json", f"sqlite:///{folder}/study.db"
    path.write_text(json.dumps(content), "utf8")
    program = "from sft_tune.cli import main; main()"
    spent = timed(["-c", program, "start", str(path), "--storage", storage], folder)
    db = Database.open(storage, create=False)
    try:
        rows = reads.evaluation_rows(db, "throughput")
    finally:
        db.dispose()
    last = {row.number: row.metrics["accuracy"] for row in rows}
    if len(last) != len(work.learning_rates):
        raise RuntimeError(f"{len(last)} of {len(work.learning_rates)} trials were evaluated")
    return spent, [last[number] for number in sorted(last)]


def _rival(name: str, folder: Path) -> tuple[float, list[float]]:
    spent = timed(["-m", f"tests.benchmarks.rivals.{name}", str(folder)], folder)
    return spent, json.loads((folder / f"{name}.json").read_text("utf8"))


def timed(arguments: list[str], folder: Path) -> float:
    """Run Python with ``arguments``; return its seconds.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    unset = ("OMP_NUM_THREADS",)  # As a user's shell has it: the numbers of threads are theirs.
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    environment = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "SFT_TUNE_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )
    spent = time.monotonic() - begun
    if done.returncode != 0:
        raise RuntimeError(f"{arguments}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return spent
