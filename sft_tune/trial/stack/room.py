"""For how many trials a device has room."""

from __future__ import annotations

import psutil
import torch
from torch import nn

from sft_tune.trial.models import parameter_count

COPIES = 10
"""What a trial takes at least, in copies of its weights: gradients, moments, the best ones, ..."""
SHARE = 0.8
"""Of the device's free memory that a stack may take."""


def least_bytes(module: nn.Module) -> int:
    """Return what a trial that trains ``module`` takes at least."""
    return 4 * COPIES * parameter_count(module, trained_only=True)


def most_of(device: torch.device, size: int) -> int:
    """Return for how many more trials of ``size`` bytes ``device`` has room."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
    else:
        free = psutil.virtual_memory().available
    return int(SHARE * free / max(size, 1))
