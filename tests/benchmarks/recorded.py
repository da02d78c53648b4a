"""Learning curves of real fine-tunes: 1,000 that lie beside this file, or this machine's own.

The task: the quickstart's pretrained convolutional network is fine-tuned to digits that it never
saw, 100 images, by configurations drawn at random from `SPACE`. Each trial is evaluated at the ten
rungs of its own horizon and at the end of each of its epochs, so that pruners can be fed either.

The table is one compressed NumPy file (`np.load`) of n trials, in the order in which they were
drawn:

    params      str    one JSON object a trial: the point of the space
    epochs      int16  [n]: the trial's horizon in epochs
    own         float32 [n, 10]: validation accuracy at 10, 20, ... 100 % of its horizon
    by_epoch    float32 [n, 20]: validation accuracy after epoch 1, 2, ...; NaN beyond its horizon
    seconds     float32 [n]: CPU seconds of the training process, evaluations included

A trial that diverged has NaN from there on. `curves.npz` was recorded on two cores of an AMD EPYC
that had much other work (25 and 65 trials a minute without). `python -m tests.benchmarks.recorded`
records anew, into the user's cache, on all cores; when it is stopped, the same command goes on.
What it has made is used in place of `curves.npz`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_tune.run.messages import cache_folder
from sft_tune.spec.config import TrialConfig, assemble
from sft_tune.spec.load import parse_study
from sft_tune.spec.space import Value
from sft_tune.spec.study import StudySpec

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = Path(__file__).with_name("curves.npz")
MODULE = "tests.benchmarks.recorded"
VERSION = 1
"""Counts up when what is recorded changes."""
TRIALS = 1000
LONGEST = 20
RUNGS = 10
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "schedule": ["constant", "linear", "cosine", "exponential"],
    "weight_decay": {"low": 1e-4, "high": 0.3, "log": True},
    "batch_size": [8, 16, 32],
    # Even numbers: their epochs and ten rungs lie on at most 100 common ones.
    "epochs": {"low": 2, "high": LONGEST, "step": 2},
    "label_smoothing": {"low": 0.0, "high": 0.2},
}


class Curves(NamedTuple):
    """The table, as the module describes it."""

    params: list[dict[str, Value]]
    epochs: NDArray[np.int16]
    own: NDArray[np.float32]
    by_epoch: NDArray[np.float32]
    seconds: NDArray[np.float32]


def study(**sections: Any) -> StudySpec:
    """Return the study whose trials are recorded, with ``sections`` in place of its own."""
    return parse_study(
        {
            "name": "recorded",
            "task": "image-classification",
            "data": {
                "source": "sklearn:digits",
                "classes": [5, 6, 7, 8, 9],
                "train_limit": 100,
                "validation_fraction": 0.5,
                "test_fraction": 0.2,
            },
            "model": {"name": "builtin:convnet", "weights": "quickstart_backbone.safetensors"},
            "space": SPACE,
            "objective": {"metric": "accuracy", "rungs": RUNGS},
            "sampler": {"name": "random"},
            **sections,
        },
        root=ROOT / "studies",
    )


def curves(trials: int = TRIALS) -> Curves:
    """Return the first ``trials`` recorded trials: this machine's, or those beside this file."""
    own = _folder() / "curves.npz"
    with np.load(own if own.exists() else SHIPPED) as file:
        arrays = {name: file[name][:trials] for name in file.files}
    return Curves(**{**arrays, "params": [json.loads(text) for text in arrays["params"]]})


def record(trials: int = TRIALS) -> Path:
    """Record as many trials, those that an earlier call has recorded left out; return the table."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    _record_all(folder, trials)
    records = _records(folder)
    temporary = folder / f".{os.getpid()}.npz"
    np.savez_compressed(temporary, **_table([records[i] for i in range(trials)]))
    return temporary.replace(folder / "curves.npz")


def _folder() -> Path:
    return cache_folder() / "benchmarks" / f"curves-{VERSION}"


def _record_all(folder: Path, trials: int) -> None:
    """Let a process on each core record the trials that no file in ``folder`` has yet."""
    missing = sorted(set(range(trials)) - set(_records(folder)))
    cores = min(len(os.sched_getaffinity(0)), len(missing))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", MODULE, str(folder / f"{os.getpid()}-{core}.jsonl")],
            stdin=subprocess.PIPE,
            env=environment,
            text=True,
            cwd=ROOT,
        )
        for core in range(cores)
    ]
    try:
        for core, process in enumerate(processes):
            if process.stdin is not None:
                process.stdin.write(json.dumps(missing[core::cores]))
                process.stdin.close()
        failed = [process.args for process in processes if process.wait() != 0]
    finally:
        for process in processes:
            process.kill()
    if failed:
        raise RuntimeError(f"{failed[0]} failed; what it has recorded is kept")


def _records(folder: Path) -> dict[int, dict[str, Any]]:
    """Return what is recorded, by the trial's place; a line torn by a kill does not count."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text("utf8").splitlines(keepends=True):
            if line.endswith("\n"):
                record = json.loads(line)
                found[record["trial"]] = record
    return found


def _table(records: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    shape = (len(records), LONGEST)
    by_epoch = np.full(shape, np.nan, np.float32)
    own = np.full((len(records), RUNGS), np.nan, np.float32)
    for row, record in enumerate(records):
        reached = {int(step): value for step, value in record["accuracy"].items()}
        horizon, epochs = record["horizon"], record["params"]["epochs"]
        steps = horizon // epochs
        for i in range(RUNGS):
            own[row, i] = reached.get(-(-horizon * (i + 1) // RUNGS), np.nan)
        for epoch in range(1, epochs + 1):
            by_epoch[row, epoch - 1] = reached.get(steps * epoch, np.nan)
    return {
        "params": np.array([json.dumps(record["params"]) for record in records]),
        "epochs": np.array([record["params"]["epochs"] for record in records], np.int16),
        "own": own,
        "by_epoch": by_epoch,
        "seconds": np.array([record["seconds"] for record in records], np.float32),
    }


def _record(spec: StudySpec, ordinal: int) -> dict[str, Any]:
    """Train the trial at place ``ordinal``; return its curve by optimizer step."""
    import optuna

    from sft_tune.search.distributions import draw
    from sft_tune.search.samplers import make_sampler
    from sft_tune.trial.loop import run_trial
    from sft_tune.trial.outcome import Evaluation
    from sft_tune.trial.paths import TrialPaths

    params = draw(optuna.create_study(sampler=make_sampler(spec, ordinal)).ask(), spec.space)
    config = assemble(spec, params, ordinal)
    common = math.lcm(RUNGS, config.training.epochs)
    objective = config.objective.model_copy(update={"rungs": common})
    config = TrialConfig(**{**dict(config), "objective": objective})
    accuracy: dict[int, float] = {}
    horizon = 0

    def report(evaluation: Evaluation) -> bool:
        nonlocal horizon
        step, horizon = evaluation.step or 0, evaluation.horizon or 0
        accuracy[step] = evaluation.metrics["accuracy"]
        return True

    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run_trial(
            config,
            TrialPaths(Path(folder) / "trial"),
            device="cpu",
            cache=cache_folder(),
            report=report,
            should_stop=lambda: False,
            checkpoint_seconds=math.inf,
            evaluation_batch_size=512,
        )
    seconds = time.process_time() - begun
    return {
        "trial": ordinal,
        "params": params,
        "horizon": horizon,
        "accuracy": accuracy,
        "seconds": seconds,
    }


def main() -> None:
    """Make the table; or, given a file, record the trials named on standard input into it."""
    if len(sys.argv) == 1:
        print(record())
        return
    import optuna
    import torch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    spec = study()
    with Path(sys.argv[1]).open("a", encoding="utf8") as file:
        for ordinal in json.load(sys.stdin):
            file.write(json.dumps(_record(spec, ordinal)) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
