"""A study that is real and small: digits, a small convolutional network, seconds in all."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY: dict[str, Any] = {
    "name": "tiny",
    "task": "image-classification",
    "data": {
        "source": "sklearn:digits",
        "train_limit": 64,
        "validation_limit": 64,
        "test_fraction": 0.2,
    },
    "model": {"name": "builtin:convnet", "weights": "none"},
    "training": {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3},
    "space": {
        "learning_rate": {"low": 1e-4, "high": 3e-2, "log": True},
        "schedule": ["linear", "cosine"],
        "epochs": [1, 2, 4],
    },
    "objective": {"rungs": 4},
    "sampler": {"name": "random"},
    "pruner": {"name": "none"},
    "budget": {"trials": 4},
    "resources": {
        "devices": "cpu",
        "trials_per_device": 1,
        "threads_per_trial": 1,
        "checkpoint_seconds": 0,
    },
}


def write_study(folder: Path, **changes: Any) -> Path:
    """Write the tiny study, with sections changed, in ``folder``; return its path.

    A section given as a mapping is merged into the tiny one's; None takes it away.
    """
    content = copy.deepcopy(TINY)
    for section, value in changes.items():
        if isinstance(value, dict) and section != "space":
            content[section] = {**content.get(section, {}), **value}
        else:
            content[section] = value
    path = folder / f"{content['name']}.json"
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the tiny study in the test's folder."""
    return functools.partial(write_study, tmp_path)
