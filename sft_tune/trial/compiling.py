"""Training through `torch.compile`, where it is asked for or repays its compilation.

What it took and gave is remembered for the next trial of the same model, data and device: one
small JSON file under `compiled` of the cache folder. Only the training passes of a module are
compiled, beside the module: the names of its tensors and its evaluation stay as they are.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from sft_tune.trial.data.cache import key_of
from sft_tune.trial.device import wait_for
from sft_tune.trial.freezing import lowest_trained
from sft_tune.trial.remembered import STEP, facts_of, replace_json
from sft_tune.trial.step import rehearse
from sft_tune.trial.trainee import Trainee

FOLDER = "compiled"
TIMED = 3
# A compilation takes tens of seconds, on a busy machine minutes (ResNet-18, 2 cores, load 6: more
# than 6): shorter trials are not even measured.
LEAST_SECONDS = 600.0

Asked = bool | Literal["auto"]


class Compiled:
    """A module's compiled call; the module itself while less of it is trained than now."""

    def __init__(self, trainee: Trainee, tell: Callable[[str], None]) -> None:
        """Compile the module of ``trainee`` when it is first called; ``tell`` why it failed."""
        self._module, self._freezing, self._tell = trainee.model.module, trainee.freezing, tell
        self._lowest = trainee.freezing.lowest
        self._call = torch.compile(self._module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module answers."""
        # What is frozen is in evaluation: each state would be compiled on its own.
        same = self._freezing.lowest == self._lowest
        return (self._call if same else self._module)(*args, **kwargs)

    def failed(self, error: Exception) -> None:
        """Tell that the trial goes on without it."""
        self._tell(f"not compiled any more: {_reason(error)}")


def use_compiled(
    trainee: Trainee,
    asked: Asked,
    cache: Path,
    *,
    step: int,
    before: bool | None,
    tell: Callable[[str], None],
) -> None:
    """Let ``trainee`` train through a compiled module, where that is asked for and works.

    ``auto`` compiles where the steps that are left save more seconds than the compilation takes,
    by what is remembered; where nothing is, a trial that is long enough finds out.

    Args:
        trainee: set to training, before ``step``.
        asked: the setting.
        cache: folder of what is remembered.
        step: the next one.
        before: whether the trial that goes on was compiled, so that its numbers stay the same;
            None for one that begins.
        tell: is told in words what was done.
    """
    if not asked or trainee.features or (asked == "auto" and before is False):
        return
    unfit = _unfit(trainee)
    if unfit:
        tell(f"not compiled: {unfit}")
        return
    free = asked == "auto" and before is None
    path = cache / FOLDER / f"{key_of(_facts(trainee))}.json"
    left, known = trainee.plan.horizon - _first_as_last(trainee, step), _read(path)
    if free and known is not None and not _repays(known, left):
        return
    with _as_last(trainee, step):
        plain = _seconds(trainee, step)
        if free and known is None and plain * left < LEAST_SECONDS:
            return
        found = _compile(trainee, step, tell)
    if found is None:
        _keep(path, {"plain": plain, "failed": True})
        return
    took, fast = found
    # A compilation that this process or the compiler's own cache still has costs less: the most
    # that was seen counts.
    took = max(took, (known or {}).get("seconds", 0.0))
    _keep(path, {"plain": plain, "compiled": fast, "seconds": took})
    told = f"a step took {1000 * fast:.0f} ms compiled, {1000 * plain:.0f} ms as it is"
    if free and fast >= plain:
        trainee.model.compiled = None
        tell(f"not compiled: {told}")
    else:
        tell(f"compiled in {took:.1f} s: {told}")


def _unfit(trainee: Trainee) -> str:
    """Return why no step of ``trainee`` would call a compiled module; nothing where some do."""
    if trainee.model.detector:
        return "a detector answers in lists of boxes"
    if _lowest(trainee, trainee.plan.horizon - 1) == trainee.model.blocks.top:
        return "only the head is trained"
    return ""


def _lowest(trainee: Trainee, step: int) -> int:
    progress = step / trainee.plan.horizon
    return lowest_trained(trainee.config.training, progress, trainee.model.blocks)


def _first_as_last(trainee: Trainee, step: int) -> int:
    """Return the first step from ``step`` on that trains what the last one does."""
    steps = range(trainee.plan.horizon)
    last = -_lowest(trainee, steps[-1])
    return bisect_left(steps, last, lo=min(step, len(steps)), key=lambda s: -_lowest(trainee, s))


@contextmanager
def _as_last(trainee: Trainee, step: int) -> Iterator[None]:
    """Inside, have ``trainee`` train what its last step does; afterwards what ``step`` does."""
    trainee.enter(trainee.plan.horizon - 1)
    try:
        yield
    finally:
        trainee.enter(step)


def _compile(
    trainee: Trainee, step: int, tell: Callable[[str], None]
) -> tuple[float, float] | None:
    """Compile the module; return the seconds that took, and those of a step; None: it failed."""
    begin = time.perf_counter()
    trainee.model.compiled = Compiled(trainee, tell)
    rehearse(trainee, step)
    wait_for(trainee.device)
    took = time.perf_counter() - begin
    fast = 0.0 if trainee.model.compiled is None else _seconds(trainee, step)
    return None if trainee.model.compiled is None else (took - fast, fast)


def _repays(known: dict[str, Any], left: int) -> bool:
    if known.get("failed"):
        return False
    return bool(left * (known["plain"] - known["compiled"]) > known["seconds"])


def _seconds(trainee: Trainee, step: int) -> float:
    """Return the median time of the passes of step ``step``, which are taken back."""
    times = []
    for _ in range(TIMED):
        wait_for(trainee.device)
        begin = time.perf_counter()
        rehearse(trainee, step)
        wait_for(trainee.device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _facts(trainee: Trainee) -> dict[str, Any]:
    threads = torch.get_num_threads() if trainee.device.type == "cpu" else None
    facts = facts_of(trainee.config, trainee.data, trainee.device, trainee.dtype)
    return {**facts, "threads": threads, "torch": torch.__version__, "step": STEP}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and (
        record.get("failed") is True
        or all(isinstance(record.get(k), int | float) for k in ("plain", "compiled", "seconds"))
    )
    return record if whole else None


def _keep(path: Path, record: dict[str, Any]) -> None:
    """Write ``record`` down. A full disk is no matter."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, record)


def _reason(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
