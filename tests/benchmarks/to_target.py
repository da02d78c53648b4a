"""Seconds until a score is reached that a patient search finds, beside Optuna and Ray Tune.

The score is the best validation accuracy of random search without pruning after 40 full trials,
under the same seed. Each then searches the same space for it as whole processes, from start to
end: ours with the defaults of a study file, Optuna's TPE with its median pruner fed by epoch, and
Ray Tune's ASHA with random search. One that has not found it after three times as many trials
counts as never: a rival's ratio is then infinite, and 0 where it is ours.
SFT_TUNE_BENCHMARK_SEEDS=3 measures fewer than 10 searches of each.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

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
    "digits_optuna": "Optuna TPE, median pruner by epoch",
    "digits_ray": "Ray Tune ASHA, random search",
}
WEIGHTS = ROOT / "studies" / "quickstart_backbone.safetensors"


def run(short: bool) -> Table:
    """Search under 10 seeds for what 40 trials find (``short``: 1 for what 3 short ones find)."""
    most = int(os.environ.get("SFT_TUNE_BENCHMARK_SEEDS", SEEDS))
    seeds, trials, longest = (1, 3, 4) if short else (most, TRIALS, LONGEST)
    found = [_search(seed, trials, longest) for seed in range(seeds)]
    rows = []
    for name in ("random", "ours", *RIVALS):
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
    ratio = statistics.median(_ratio(one, "digits_optuna") for one in found)
    met = ratio >= TARGET
    return Table(
        title=f"seconds to the best of {trials} random trials of up to {longest} epochs, {seeds} "
        "seeds; builtin:convnet on digits, 100 images, whole processes",
        columns=("", "median", "of ours", "range", "reached", "trials"),
        rows=rows,
        notes=[]
        if short
        else [f"target: Optuna {TARGET:.0f} times ours; {'met' if met else 'MISSED'}: {ratio:.2f}"],
        met=None if short else met,
    )


_LABELS = {"random": "ours: random, no pruning", "ours": "ours: the defaults"}

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


def _search(seed: int, trials: int, longest: int) -> dict[str, Found]:
    """Return what each took for the target of ``seed``."""
    space = {**SPACE, "epochs": {**SPACE["epochs"], "high": longest}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_data(folder, seed)
        plain = {"sampler": {"name": "random"}, "pruner": {"name": "none"}}
        found = {"random": _ours(folder, "random", seed, space, {"trials": trials}, plain)}
        target, most = found["random"][1], 3 * trials
        found["ours"] = _ours(folder, "ours", seed, space, {"trials": most, "target": target}, {})
        work = {
            **{"target": target, "most": most, "seed": seed, "space": space, "longest": longest},
            "model": str(WEIGHTS),
        }
        (folder / "work.json").write_text(json.dumps(work), "utf8")
        for rival in RIVALS:
            seconds = timed(["-m", f"tests.benchmarks.rivals.{rival}", str(folder)], folder)
            result = json.loads((folder / f"{rival}.json").read_text("utf8"))
            found[rival] = (seconds, result["best"], result["trials"])
    return found


def _ours(
    folder: Path,
    name: str,
    seed: int,
    space: dict[str, Any],
    budget: dict[str, Any],
    sections: dict[str, Any],
) -> Found:
    content = {
        "name": name,
        "task": "image-classification",
        "seed": seed,
        "data": {"source": str(folder / "data")},
        "model": {"name": "builtin:convnet", "weights": str(WEIGHTS)},
        "space": space,
        "objective": {"metric": "accuracy"},
        "budget": budget,
        "resources": {"devices": "cpu"},
        **sections,
    }
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
