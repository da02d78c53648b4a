"""What is watched while a trial trains, read from the device only at rungs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from sft_tune.trial.device import wait_for

# On a GPU reading a number waits for all work that was queued; on the CPU it is free.
CHECK_EVERY = {"cpu": 1}
CHECK_EVERY_ELSEWHERE = 50

# A loss explodes when the mean of WINDOW batches is over FACTOR times what it was over the first
# WINDOW batches, or over FACTOR times CHANCE where training began below that: a trial that never
# learns stays near the loss of guessing, and one that learns may bounce off a loss near zero.
WINDOW = 10
FACTOR = 10.0
CHANCE = 1.0


Numbers = list[Tensor | float]
"""Of one number each; those on the device are not waited for."""


class Monitors:
    """Loss, gradient norm and size of every batch since the last rung.

    Losses and norms stay on the device as tensors of one number.
    """

    def __init__(self, device: torch.device, norms_may_overflow: bool) -> None:
        """Watch on ``device``; with fp16 a norm may overflow: the scaler skips such steps."""
        self.losses: Numbers = []
        self.norms: Numbers = []
        self.sizes: list[int] = []
        self.ratios: Numbers = []
        self._norms_may_overflow = norms_may_overflow
        self._first: list[float] = []
        self._last: list[float] = []
        self._check_every = CHECK_EVERY.get(device.type, CHECK_EVERY_ELSEWHERE)
        self._checked = 0
        self._earlier = 0

    def add(
        self,
        loss: Tensor | float,
        norm: Tensor | float,
        size: int,
        ratio: Tensor | float | None = None,
    ) -> None:
        """Note the mean loss of a batch of ``size`` examples and the norm of its gradient.

        And ``ratio``, how far the step moved the weights, where that was measured.
        """
        self.losses.append(loss)
        self.norms.append(norm)
        self.sizes.append(size)
        if ratio is not None:
            self.ratios.append(ratio)

    def fault(self, step: int, at_rung: bool) -> str | None:
        """Return what is not finite among what was added, or that the loss explodes.

        Args:
            step: steps done, the last one added included.
            at_rung: it is time to look in any case.
        """
        if not at_rung and step % self._check_every:
            return None
        first = step - len(self.losses)
        start, self._checked = self._checked, len(self.losses)
        watched = {"loss": self.losses[start:]}
        if not self._norms_may_overflow:
            watched["gradient norm"] = self.norms[start:]
        for name, series in watched.items():
            for offset, value in enumerate(_numbers(series)):
                if not math.isfinite(value):
                    return f"{name} became {value} at step {first + start + offset + 1}"
                if name == "loss" and self._explodes(value):
                    return (
                        f"loss exploded: {_mean(self._last):.3g} over the last {WINDOW} steps, "
                        f"{_mean(self._first):.3g} over the first, "
                        f"at step {first + start + offset + 1}"
                    )
        return None

    def _explodes(self, loss: float) -> bool:
        """Add ``loss`` to the windows; tell whether the last is too far above the first."""
        if len(self._first) < WINDOW:
            self._first.append(loss)
            return False
        self._last = [*self._last, loss][-WINDOW:]
        if len(self._last) < WINDOW:
            return False
        return _mean(self._last) > FACTOR * max(_mean(self._first), CHANCE)

    def train_loss(self) -> float:
        """Return the mean loss per example since the last rung."""
        return float(np.average(_numbers(self.losses), weights=self.sizes))

    def gradient_norm(self) -> float:
        """Return the median norm since the last rung, 0 when every one overflowed.

        Steps whose gradient overflowed in fp16 were skipped, and do not count.
        """
        norms = self._finite_norms()
        return float(np.median(norms)) if norms else 0.0

    def gradient_norm_max(self) -> float:
        """Return the largest norm since the last rung, 0 when every one overflowed."""
        return max(self._finite_norms(), default=0.0)

    def update_ratio(self) -> float | None:
        """Return the median share by which the measured steps moved the weights.

        Steps that the scaler skipped moved nothing, and do not count. None without a step.
        """
        moved = [ratio for ratio in _numbers(self.ratios) if math.isfinite(ratio) and ratio > 0]
        return float(np.median(moved)) if moved else None

    def samples(self) -> int:
        """Return the examples since the last rung that this attempt has trained on."""
        return sum(self.sizes[self._earlier :])

    def clear(self) -> None:
        """Begin anew after a rung."""
        self.losses, self.norms, self.sizes, self.ratios = [], [], [], []
        self._checked = self._earlier = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return what is watched as one tensor each (CPU), for a checkpoint."""
        return {
            "losses": torch.tensor(_numbers(self.losses), dtype=torch.float32),
            "norms": torch.tensor(_numbers(self.norms), dtype=torch.float32),
            "ratios": torch.tensor(_numbers(self.ratios), dtype=torch.float32),
            "first": torch.tensor(self._first, dtype=torch.float64),
            "last": torch.tensor(self._last, dtype=torch.float64),
            "checked": torch.tensor(self._checked),
        }

    def restore(self, saved: Mapping[str, Tensor], sizes: list[int]) -> None:
        """Go on from what `tensors` returned, now on the device, and the sizes."""
        self.losses, self.norms = list(saved["losses"].unbind()), list(saved["norms"].unbind())
        self.ratios = list(saved["ratios"].unbind())
        self.sizes = list(sizes)
        self._checked, self._earlier = 0, len(sizes)
        if "first" in saved:  # checkpoints of earlier versions lack it
            self._first, self._last = saved["first"].tolist(), saved["last"].tolist()
            self._checked = int(saved["checked"])

    def _finite_norms(self) -> list[float]:
        return [norm for norm in _numbers(self.norms) if math.isfinite(norm)]


class Clock:
    """Seconds on the device, over all attempts of a trial."""

    def __init__(self) -> None:
        """Stand still until `start`."""
        self.earlier = 0.0
        self._started: float | None = None
        self._aside = 0.0
        self._lap = 0.0

    def start(self) -> None:
        """Begin to count this attempt."""
        self._started = time.perf_counter()

    def attempt(self) -> float:
        """Return the seconds of this attempt."""
        return 0.0 if self._started is None else time.perf_counter() - self._started

    def total(self) -> float:
        """Return the seconds of this and earlier attempts."""
        return self.earlier + self.attempt()

    def training(self) -> float:
        """Return the seconds of this attempt without those that were spent `aside`."""
        return self.attempt() - self._aside

    def lap(self) -> float:
        """Return the seconds of `training` since the last call."""
        before, self._lap = self._lap, self.training()
        return self._lap - before

    @contextmanager
    def aside(self, device: torch.device) -> Iterator[None]:
        """Count what happens inside (building, evaluating, saving) as no training."""
        wait_for(device)
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._aside += time.perf_counter() - begin


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _numbers(values: Numbers) -> list[float]:
    """Return what may be tensors of one number as numbers, with one transfer for all."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    found: list[float] = torch.stack(tensors).float().tolist() if tensors else []
    if len(found) == len(values):
        return found
    left = iter(found)  # a restored trial that is stacked has both
    return [next(left) if isinstance(value, Tensor) else value for value in values]
