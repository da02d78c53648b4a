"""The commands that a runner sends to a worker."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs

from sft_tune.run.slots import Slot
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.resources import ResourcesSpec

Message = dict[str, Any]

STOP: Message = {"do": "stop"}
QUIT: Message = {"do": "quit"}
DROP: Message = {"do": "drop"}


def cache_folder() -> Path:
    """Return the folder of prepared data and downloads: SFT_TUNE_CACHE, or the user's cache."""
    given = os.environ.get("SFT_TUNE_CACHE")
    return Path(given) if given else Path(platformdirs.user_cache_dir("sft_tune"))


def probe(
    config: TrialConfig,
    batch_sizes: Sequence[int],
    batch_tokens: Sequence[int],
    slot: Slot,
    resources: ResourcesSpec,
) -> Message:
    """Load data and model of ``config`` and take a step per batch size, and per token budget.

    It has the memory that a trial on ``slot`` has; ``resources`` are the study's.
    """
    return {
        "do": "probe",
        "config": config.model_dump(mode="json"),
        "batch_sizes": list(batch_sizes),
        "batch_tokens": list(batch_tokens),
        **_confined(slot),
        "cache": str(cache_folder()),
        "evaluation_batch_size": resources.evaluation_batch_size,
        "feature_cache": resources.feature_cache,
    }


def measure(
    config: TrialConfig,
    device: str,
    threads: int,
    seconds: float,
    resources: ResourcesSpec,
    prepared: str | None,
) -> Message:
    """Train ``config`` for ``seconds`` after a verdict, and tell the samples per second.

    ``resources`` are the study's. ``prepared`` is the URL where machines share prepared data, if
    any; so it is below.
    """
    return {
        "do": "measure",
        "config": config.model_dump(mode="json"),
        "device": device,
        "threads": threads,
        "seconds": seconds,
        "prepared": prepared,
        "cache": str(cache_folder()),
        "feature_cache": resources.feature_cache,
        "evaluation_batch_size": resources.evaluation_batch_size,
    }


def measure_stack(
    config: TrialConfig,
    batch_sizes: Sequence[int],
    trials: int | None,
    slot: Slot,
    resources: ResourcesSpec,
    prepared: str | None,
) -> Message:
    """Tell how many times faster trials like ``config`` train as a stack than alone.

    ``batch_sizes`` are those of the trials in it, equal ones side by side; ``trials`` is how many
    there are in all, where that is known.
    """
    return {
        "do": "measure_stack",
        "config": config.model_dump(mode="json"),
        "batch_sizes": list(batch_sizes),
        "trials": trials,
        "device": slot.device,
        "threads": _threads(slot, resources),
        "prepared": prepared,
        "cache": str(cache_folder()),
        "evaluation_batch_size": resources.evaluation_batch_size,
    }


def train(
    config: TrialConfig,
    folder: Path,
    slot: Slot,
    resources: ResourcesSpec,
    *,
    with_test: bool = False,
    url: str | None = None,
    prepared: str | None = None,
    refit_to: int | None = None,
    stack: bool = False,
    kept_from: float | None = None,
) -> Message:
    """Train ``config`` in ``folder`` on ``slot``, on from its checkpoint where it has one.

    ``with_test`` has the best weights evaluated on the test split afterwards. With ``url`` the
    trial's files belong there, and ``folder`` is of this machine alone. ``refit_to`` trains on
    validation too (see `run_trial`). With ``stack`` it trains together with others of the worker.
    Weights of a value worse than ``kept_from`` are not written; it comes to be known of a stack's
    trials, of which ``resources`` say how many keep theirs.
    """
    return {
        "do": "train",
        "config": config.model_dump(mode="json"),
        "folder": str(folder),
        "url": url,
        "prepared": prepared,
        **_confined(slot, resources),
        "cache": str(cache_folder()),
        "checkpoint_seconds": resources.checkpoint_seconds,
        "evaluation_batch_size": resources.evaluation_batch_size,
        "feature_cache": resources.feature_cache,
        "compile": resources.compile,
        "with_test": with_test,
        "loggers": list(resources.loggers),
        "refit_to": refit_to,
        "stack": stack,
        "kept_from": kept_from,
        "keep": None if with_test else resources.keep_checkpoints,
    }


def soup(
    candidates: Sequence[tuple[int, str, TrialConfig]],
    target: Path,
    slot: Slot,
    resources: ResourcesSpec,
) -> Message:
    """Average the checkpoints of ``candidates`` (number, path, configuration) into ``target``."""
    return {
        "do": "soup",
        "candidates": [
            {"number": number, "path": path, "config": config.model_dump(mode="json")}
            for number, path, config in candidates
        ],
        "target": str(target),
        **_evaluation(slot, resources),
    }


def export(
    config: TrialConfig, best: str, folder: Path, reference: Path, *, onnx: bool, slot: Slot
) -> Message:
    """Write the checkpoint ``best`` to ``folder`` in its library's format."""
    return {
        "do": "export",
        "config": config.model_dump(mode="json"),
        "best": best,
        "folder": str(folder),
        "reference": str(reference),
        "onnx": onnx,
        "device": slot.device,
        "cache": str(cache_folder()),
    }


def verify(
    config: TrialConfig,
    folder: Path,
    reference: Path,
    call: Mapping[str, Any],
    *,
    onnx: bool,
    slot: Slot,
    resources: ResourcesSpec,
) -> Message:
    """Load what `export` has written, and evaluate the validation split with it."""
    return {
        "do": "verify",
        "config": config.model_dump(mode="json"),
        "folder": str(folder),
        "reference": str(reference),
        "call": dict(call),
        "onnx": onnx,
        **_evaluation(slot, resources),
    }


def _threads(slot: Slot, resources: ResourcesSpec) -> int:
    """Return the threads of a trial on ``slot``: a worker of many studies may have more for it."""
    return min(slot.threads, resources.threads_per_trial or slot.threads)


def _confined(slot: Slot, resources: ResourcesSpec | None = None) -> Message:
    return {
        "device": slot.device,
        "threads": slot.threads if resources is None else _threads(slot, resources),
        "memory_share": 1 / slot.sharing if slot.gpu is not None else None,
    }


def _evaluation(slot: Slot, resources: ResourcesSpec) -> Message:
    return {
        "device": slot.device,
        "cache": str(cache_folder()),
        "batch_size": resources.evaluation_batch_size,
    }


def verdict(go_on: bool) -> Message:
    """Answer an evaluation: go on, or end as pruned."""
    return {"do": "verdict", "go_on": go_on}
