"""The global random-number states: seeded at once, saved and restored at once.

Dropout and augmentation draw from them, so an exact resume needs every one.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (of all devices) with ``seed``."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_states(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of all generators as tensors, and what of them is JSON."""
    _, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    numpy_rest = [str(kind), int(position), int(has_gauss), float(cached)]
    return tensors, {"python_gauss": gauss, "numpy": numpy_rest}


def restore_random_states(
    tensors: dict[str, Tensor], rest: dict[str, Any], device: torch.device
) -> None:
    """Set every generator to the states that `random_states` returned."""
    words = tuple(int(word) for word in tensors["python"])
    random.setstate((3, words, rest["python_gauss"]))
    kind, position, has_gauss, cached = rest["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    # A trial that began on another kind of device goes on with that device's own stream.
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)
