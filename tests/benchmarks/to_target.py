"""Seconds until a score is reached that a patient search finds, beside Optuna and Ray Tune.

The score is the best validation accuracy of random search without pruning after 40 full trials,
under the same seed. Each then searches the same space for it as whole processes, from start to
end: ours with the defaults of a study file, Optuna's TPE with its median pruner fed by epoch, and
Ray Tune's ASHA with random search. One that has not found it after three times as many trials
counts as never: a rival's ratio is then infinite, and 0 where it is ours.
SFT_TUNE_BENCHMARK_SEEDS=3 measures fewer than 10 searches of each,
SFT_TUNE_BENCHMARK_RIVALS=target_optuna against one rival alone. The limit is a process that does
nothing but import PyTorch and take one step of an optimizer: no search can end before.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sft_tune.store import reads
from sft_tune.store.database import Database
from tests.benchmarks import Table
from tests.benchmarks.recorded import LONGEST, ROOT, SPACE
from tests.benchmarks.side_by_side import timed

TRIALS = 40
SEEDS = 10
TARGET = 3.0
"""How many times faster than Optuna ours is to be, in the median over seeds."""
RIVALS = {
    "target_optuna": "Optuna TPE, median pruner by epoch",
    "target_ray": "Ray Tune ASHA, random search",
}
WEIGHTS = ROOT / "studies" / "quickstart_backbone.safetensors"


class Task(NamedTuple):
    """What is searched.

    Attributes:
        kind: module of `rivals` that has the training as a plain script has it.
        title: in words.
        space: of the study file; ``epochs`` from 2 to `LONGEST`.
        weights: that the fine-tuning starts from.
        study: sections of our study file: model, and what else is fixed.
        write: writes the data of a seed into a folder, ours as an image folder ``data``.
    """

    kind: str
    title: str
    space: dict[str, Any]
    weights: Path
    study: dict[str, Any]
    write: Callable[[Path, int], None]


def run(short: bool) -> Table:
    """Search under 10 seeds for what 40 trials find (``short``: 1 for what 3 short ones find)."""
    return measure(DIGITS, short)


def measure(task: Task, short: bool) -> Table:
    """Let everyone search ``task`` for what random trials find."""
    asked = int(os.environ.get("SFT_TUNE_BENCHMARK_SEEDS", SEEDS))
    seeds, trials, longest = (1, 3, 4) if short else (asked, TRIALS, LONGEST)
    found = [_search(task, seed, trials, longest) for seed in range(seeds)]
    rows = []
    for name in ("random", "ours", *_rivals()):
        seconds = [_until(one, name) for one in found]
        ratios = [_ratio(one, name) for one in found]
        reached = sum(one[name][1] >= one["random"][1] for one in found)
        rows.append(
            (
                _LABELS.get(name) or RIVALS[name],
                f"{statistics.median(seconds):.1f} s",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                f"{reached} of {seeds}",
                f"{statistics.median(one[name][2] for one in found):.0f}",
            )
        )
    ratio = statistics.median(_ratio(one, "target_optuna") for one in found)
    met = ratio >= TARGET
    limit = _limit()
    verdict = "met" if met else "MISSED"
    most = statistics.median(_until(one, "target_optuna") for one in found) / limit
    return Table(
        title=f"seconds to the best of {trials} random trials of up to {longest} epochs, {seeds} "
        f"seeds; {task.title}; whole processes",
        columns=("", "median", "of ours", "range", "reached", "trials"),
        rows=rows,
        notes=[
            f"limit: importing PyTorch and one step of an optimizer take {limit:.1f} s, so that "
            f"ours can be at most {most:.1f} times as fast as Optuna in the median",
            *([] if short else [f"target: {TARGET:.0f} times; {verdict}: {ratio:.2f}"]),
        ],
        met=None if short else met,
    )


def _rivals() -> list[str]:
    """Return those to measure: all, or those asked for."""
    return os.environ.get("SFT_TUNE_BENCHMARK_RIVALS", ",".join(RIVALS)).split(",")


_LABELS = {"random": "ours: random, no pruning", "ours": "ours: the defaults"}

STEP = "import torch; p = torch.zeros(1, requires_grad=True); torch.optim.SGD([p]).step()"


def _limit() -> float:
    """Return the seconds of a process that is ready to train, the median of three."""
    with tempfile.TemporaryDirectory() as name:
        return statistics.median(timed(["-c", STEP], Path(name)) for _ in range(3))


Found = tuple[float, float, int]
"""Seconds, best accuracy, trials."""


def _until(one: dict[str, Found], name: str) -> float:
    """Return the seconds until the target was reached; infinite where it was not."""
    seconds, best, _ = one[name]
    return seconds if best >= one["random"][1] else math.inf


def _ratio(one: dict[str, Found], name: str) -> float:
    """Return how many times longer than ours it took."""
    ours = _until(one, "ours")
    return _until(one, name) / ours if math.isfinite(ours) else 0.0


def _search(task: Task, seed: int, trials: int, longest: int) -> dict[str, Found]:
    """Return what each took for the target of ``seed``."""
    space = {**task.space, "epochs": {**task.space["epochs"], "high": longest}}
    common = {"seed": seed, "space": space, **task.study}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task.write(folder, seed)
        plain = {"sampler": {"name": "random"}, "pruner": {"name": "none"}}
        found = {"random": _ours(folder, "random", {**common, **plain}, {"trials": trials})}
        target, most = found["random"][1], 3 * trials
        found["ours"] = _ours(folder, "ours", common, {"trials": most, "target": target})
        work = {
            **{"target": target, "most": most, "seed": seed, "space": space, "longest": longest},
            **{"kind": task.kind, "model": str(task.weights)},
        }
        (folder / "work.json").write_text(json.dumps(work), "utf8")
        for rival in _rivals():
            seconds = timed(["-m", f"tests.benchmarks.rivals.{rival}", str(folder)], folder)
            result = json.loads((folder / f"{rival}.json").read_text("utf8"))
            found[rival] = (seconds, result["best"], result["trials"])
    seen = ", ".join(f"{name} {s:.1f} s {best:.4f} ({n})" for name, (s, best, n) in found.items())
    print(f"seed {seed}: {seen}", file=sys.stderr, flush=True)
    return found


def _ours(folder: Path, name: str, sections: dict[str, Any], budget: dict[str, Any]) -> Found:
    content = {
        "name": name,
        "task": "image-classification",
        "data": {"source": str(folder / "data")},
        "objective": {"metric": "accuracy"},
        "budget": budget,
        "resources": {"devices": "cpu"},
        **sections,
    }
    shutil.rmtree(folder / "cache", ignore_errors=True)  # of the study before
    path, storage = folder / f"{name}.json", f"sqlite:///{folder}/study.db"
    path.write_text(json.dumps(content), "utf8")
    program = "from sft_tune.cli import main; main()"
    seconds = timed(["-c", program, "start", str(path), "--storage", storage], folder)
    db = Database.open(storage, create=False)
    try:
        best, rows = reads.best_row(db, name), reads.trial_rows(db, name)
    finally:
        db.dispose()
    return seconds, 0.0 if best is None else best.value or 0.0, len(rows)


def _write_data(folder: Path, seed: int) -> None:
    """Write digits 5 to 9, 100 to train on and half of the others to choose by, for everyone."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    chosen = bunch.target >= 5
    pixels = (bunch.images[chosen] * (255 / 16)).round().astype(np.uint8)
    labels = bunch.target[chosen].astype(np.int64) - 5
    options = {"random_state": seed, "stratify": labels}
    train, rest = train_test_split(np.arange(len(labels)), train_size=100, **options)
    held_out = rest[: len(rest) // 2]
    for split, rows in (("train", train), ("validation", held_out)):
        np.savez(folder / f"{split}.npz", pixels=pixels[rows], labels=labels[rows])
        for row in rows:
            target = folder / "data" / split / str(labels[row])
            target.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row]).save(target / f"{row}.png")


DIGITS = Task(
    kind="digits",
    title="builtin:convnet on digits, 100 images",
    space=SPACE,
    weights=WEIGHTS,
    study={"model": {"name": "builtin:convnet", "weights": str(WEIGHTS)}},
    write=_write_data,
)
