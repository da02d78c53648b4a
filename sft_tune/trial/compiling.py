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
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from sft_tune.trial.data.cache import key_of
from sft_tune.trial.device import is_out_of_memory, wait_for
from sft_tune.trial.models import BuiltModel
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
    """A module's compiled call; where it fails, the module itself, from then on."""

    def __init__(self, model: BuiltModel, tell: Callable[[str], None]) -> None:
        """Compile the module of ``model`` when it is first called; ``tell`` why it failed."""
        self._model, self._tell = model, tell
        self._call = torch.compile(model.module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module answers."""
        try:
            return self._call(*args, **kwargs)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # An error of the module's own is raised again by the module itself.
            self._model.compiled = None
            answer = self._model.module(*args, **kwargs)
            self._tell(f"not compiled any more: {_reason(error)}")
            return answer


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
    if trainee.model.detector:
        tell("not compiled: a detector answers in lists of boxes")
        return
    path = cache / FOLDER / f"{key_of(_facts(trainee))}.json"
    left, known = trainee.plan.horizon - step, _read(path)
    if asked == "auto" and before is None and known is not None and not _repays(known, left):
        return
    plain = _seconds(trainee, step)
    if asked == "auto" and before is None and known is None and plain * left < LEAST_SECONDS:
        return
    found: dict[str, Any] = {"plain": plain}
    model = trainee.model
    begin = time.perf_counter()
    try:
        model.compiled = Compiled(model, tell)
        rehearse(trainee, step)
        wait_for(trainee.device)
        took = time.perf_counter() - begin
        if model.compiled is None:  # it has failed, and said so
            _keep(path, {**found, "failed": True})
            return
        fast = _seconds(trainee, step)
    except Exception as error:  # of the compiler, in the backward pass
        model.compiled = None
        if is_out_of_memory(error):
            raise
        _keep(path, {**found, "failed": True})
        tell(f"not compiled: {_reason(error)}")
        return
    # A compilation that this process or the compiler's own cache still has costs less: the most
    # that was seen counts.
    took = max(took - fast, (known or {}).get("seconds", 0.0))
    _keep(path, {**found, "compiled": fast, "seconds": took})
    told = f"a step took {1000 * fast:.0f} ms compiled, {1000 * plain:.0f} ms as it is"
    if asked == "auto" and before is None and fast >= plain:
        model.compiled = None
        tell(f"not compiled: {told}")
    else:
        tell(f"compiled in {took:.1f} s: {told}")


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
