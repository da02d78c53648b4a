"""CUDA graphs: both passes of batches of one shape, recorded once and replayed at once.

Torch records what its compiler made ("CUDA graph trees"). All outputs of a recording, gradients
among them, lie in memory that the next pass writes over: so only trials whose gradients are gone
before the next pass are recorded, and a recording is believed when its numbers are the module's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from sft_tune.spec.tasks import TASKS
from sft_tune.trial.step import Rehearsed, rehearse
from sft_tune.trial.trainee import Trainee

DEVICES = ("cuda",)
MODE = "reduce-overhead"
"""Torch's name for compiling with CUDA graphs."""
COUNTER = "cudagraph_recorded_non_static_inputs"
"""Torch's count of what is copied into the graphs that it has recorded."""

# How far loss and gradient norm may be from the module's own, as a share; where they are near 0,
# and one pass in bfloat16 is as far from the next, so far at all.
TOLERANCE = {torch.float32: 0.01}
TOLERANCE_ELSE = 0.05
NEAR_ZERO = 1e-3


def suit(trainee: Trainee, step: int) -> bool:
    """Tell whether the passes of ``trainee`` may be replayed, by those of step ``step``.

    Its images are of one size and go through the module once a step, as a whole batch: in parts
    their gradients would be added up in memory that is written over. What is drawn on the device
    would be drawn otherwise, so that no numbers could be compared.
    """
    training = trainee.config.training
    return (
        trainee.device.type in DEVICES
        and TASKS[trainee.config.task].input == "image"
        and not trainee.model.detector
        and training.freeze in ("none", "blocks")
        and training.r_drop == 0
        and not training.gradient_checkpointing
        and trainee.portion.limit is None
        and not rehearse(trainee, step).drew
    )


def agree(found: Sequence[Rehearsed], expected: Sequence[Rehearsed], dtype: torch.dtype) -> bool:
    """Tell whether losses and gradient norms are as ``expected``, but for rounding in ``dtype``."""
    share = TOLERANCE.get(dtype, TOLERANCE_ELSE)
    return all(
        math.isclose(float(one), float(other), rel_tol=share, abs_tol=NEAR_ZERO)
        for ours, theirs in zip(found, expected, strict=True)
        for one, other in ((ours.loss, theirs.loss), (ours.norm, theirs.norm))
    )


def recorded() -> int:
    """Return a count that has grown when a graph was recorded."""
    # Where nothing was compiled it is not there, and to import it takes seconds.
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else int(utils.counters["inductor"][COUNTER])


def forget() -> None:
    """Give back the memory of what was recorded."""
    torch.compiler.reset()


@contextmanager
def none_left(device: torch.device) -> Iterator[None]:
    """Forget what is recorded inside: the tensors of its trial are gone then."""
    if device.type not in DEVICES:
        yield
        return
    before = recorded()
    try:
        yield
    finally:
        if recorded() > before:
            forget()
