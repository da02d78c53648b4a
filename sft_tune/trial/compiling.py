"""Training through `torch.compile`, where it is asked for or repays its compilation.

What it took and gave is remembered for the next trial of the same model, data and device: one
small JSON file under `compiled` of the cache folder. Only the training passes of a module are
compiled, beside the module: the names of its tensors and its evaluation stay as they are.
"""

from __future__ import annotations

import contextlib
import itertools
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
from sft_tune.trial.graphs import MODE, agree, forget, recorded, suit
from sft_tune.trial.remembered import STEP, facts_of, replace_json
from sft_tune.trial.step import rehearse
from sft_tune.trial.trainee import Trainee

FOLDER = "compiled"
FORM = 2
"""Of what is remembered: since 2, of the steps that are compiled."""
TIMED = 3
COMPARED = 3
MOST_TOLD = 200
# A compilation takes tens of seconds, on a busy machine minutes (ResNet-18, 2 cores, load 6: more
# than 6): nothing is measured before trials have come to this together.
LEAST_SECONDS = 600.0
# What the compiler has made it keeps on disk: in another process that costs about a tenth of the
# first time (ResNet-18: 89 to 144 s, then 7 to 12; the convnet: 66 to 92, then 4 to 11; 2 busy
# cores), in the same one nothing. Until it has been measured it is taken to cost more.
AGAIN = 0.2

# Torch compiles a module so often for what is not the same (its dropout, the shape of a batch), and
# then calls the module itself without a word. Its own 8 are few for a process of many trials.
MOST_KINDS = 256
TRIALS_KEPT = 64
"""After so many trials what was compiled for them is forgotten, long before that is reached."""

_count = itertools.count(1)

Asked = bool | Literal["auto"]


class Compiled:
    """A module's compiled call; the module itself while less of it is trained than now.

    With CUDA graphs also for batches of another shape than the first.
    """

    def __init__(self, trainee: Trainee, tell: Callable[[str], None], *, graphs: bool) -> None:
        """Compile the module of ``trainee`` when it is first called; ``tell`` why it failed."""
        self._module, self._freezing, self._tell = trainee.model.module, trainee.freezing, tell
        self._lowest = trainee.freezing.lowest
        self._shape: torch.Size | None = None
        self.whole_batches = graphs
        options: dict[str, Any] = {"mode": MODE, "dynamic": False} if graphs else {}
        if next(_count) % TRIALS_KEPT == 0:
            torch.compiler.reset()
        torch._dynamo.config.recompile_limit = MOST_KINDS
        self._call = torch.compile(self._module, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the module answers."""
        # What is frozen is in evaluation: each state would be compiled on its own.
        if self._freezing.lowest != self._lowest:
            return self._module(*args, **kwargs)
        if self.whole_batches:
            shape = (args[0] if args else kwargs["pixel_values"]).shape
            self._shape = self._shape or shape
            if shape != self._shape:
                return self._module(*args, **kwargs)
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._call(*args, **kwargs)

    def close(self) -> None:
        """Give back the memory of its graphs."""
        if self.whole_batches:
            forget()

    def failed(self, why: str) -> None:
        """Tell that the trial goes on without it."""
        self._tell(f"not compiled any more: {why[:MOST_TOLD]}")


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
    by what is remembered. Where nothing is, trials add up their seconds, as planned: the one that
    reaches `LEAST_SECONDS` finds out for all.

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
    left = trainee.plan.horizon - _first_as_last(trainee, step)
    whole = step - step % trainee.plan.steps_per_epoch  # whose batch is no smaller than others
    with _as_last(trainee, step):
        graphs = suit(trainee, whole)
        path = cache / FOLDER / f"{key_of(_facts(trainee, graphs))}.json"
        known = _read(path)
        measured = None if known is None or "spent" in known else known
        if free and measured is not None and not _repays(measured, left):
            return
        plain = _seconds(trainee, whole)
        if free and measured is None:
            spent = (known or {}).get("spent", 0.0) + plain * left
            if spent < LEAST_SECONDS:
                _keep(path, {"spent": spent})
                return
        before_it = recorded()
        found = _compile(trainee, whole, tell, graphs=graphs)
    if found is None:
        _keep(path, {"plain": plain, "failed": True})
        return
    took, fast = found
    costs = {"seconds": took}
    if measured is not None and "seconds" in measured:
        costs = {"seconds": measured["seconds"], "again": took}
    _keep(path, {"plain": plain, "compiled": fast, **costs})
    told = f"a step took {1000 * fast:.0f} ms compiled, {1000 * plain:.0f} ms as it is"
    if free and fast >= plain:
        _leave(trainee)
        tell(f"not compiled: {told}")
    else:
        how = ", with CUDA graphs" if recorded() > before_it else ""
        tell(f"compiled in {took:.1f} s{how}: {told}")


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
    trainee: Trainee, step: int, tell: Callable[[str], None], *, graphs: bool
) -> tuple[float, float] | None:
    """Compile the module; return the seconds that took, and those of a step; None: it failed."""
    # Of several batches, which a recording that does not see its input would not have.
    steps = range(step, min(step + COMPARED, trainee.plan.horizon)) if graphs else range(0)
    expected = [rehearse(trainee, s) for s in steps]
    begin = time.perf_counter()
    trainee.model.compiled = Compiled(trainee, tell, graphs=graphs)
    rehearse(trainee, step)
    wait_for(trainee.device)
    took = time.perf_counter() - begin
    fast = 0.0 if trainee.model.compiled is None else _seconds(trainee, step)
    found = [rehearse(trainee, s) for s in steps]
    if trainee.model.compiled is None:  # it has failed, and said so
        return None
    if not agree(found, expected, trainee.dtype):
        _leave(trainee)
        tell("not compiled: loss and gradient would be others with CUDA graphs")
        return None
    return max(0.0, took - fast), fast


def _leave(trainee: Trainee) -> None:
    compiled, trainee.model.compiled = trainee.model.compiled, None
    if compiled is not None:
        compiled.close()


def _repays(known: dict[str, Any], left: int) -> bool:
    if known.get("failed"):
        return False
    cost = known.get("again", AGAIN * known["seconds"])
    return bool(left * (known["plain"] - known["compiled"]) > cost)


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


def _facts(trainee: Trainee, graphs: bool) -> dict[str, Any]:
    threads = torch.get_num_threads() if trainee.device.type == "cpu" else None
    facts = facts_of(trainee.config, trainee.data, trainee.device, trainee.dtype)
    compiler = {"torch": torch.__version__, "graphs": graphs, "form": FORM}
    return {**facts, "threads": threads, "step": STEP, **compiler}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    numbers = {k for k, v in record.items() if isinstance(v, int | float)}
    whole = "failed" in numbers or "spent" in numbers or numbers >= {"plain", "compiled", "seconds"}
    return record if whole and len(numbers) == len(record) else None


def _keep(path: Path, record: dict[str, Any]) -> None:
    """Write ``record`` down. A full disk is no matter."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, record)
