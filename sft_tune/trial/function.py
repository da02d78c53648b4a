"""A trial that is a user's own training function: called, listened to, and ended like others."""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sft_tune.errors import MissingFunctionError, TrialError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.function_task import IN_WORKER, PASSED, SCHEME
from sft_tune.spec.objective import resolve_direction
from sft_tune.trial.data.functions import import_module
from sft_tune.trial.data.resident import release
from sft_tune.trial.device import is_out_of_memory, memory_report, open_device, peak_memory
from sft_tune.trial.function_files import FunctionFiles
from sft_tune.trial.mirror import Mirror
from sft_tune.trial.outcome import Evaluation, Outcome, Reason
from sft_tune.trial.paths import TrialPaths

Function = Callable[..., Any]

_OWN_PLACE = ("train_loss", "learning_rate")


def load_function(task: str) -> Function:
    """Return the function that ``task`` names.

    Raises:
        MissingFunctionError: it cannot be imported.
        TrialError: it is not there, or has a parameter that is not passed.
    """
    target, _, name = task.removeprefix(SCHEME).rpartition(":")
    # Its file may call `tune`, which is for the process that people started.
    os.environ[IN_WORKER] = "1"
    if target.endswith(".py") and (folder := str(Path(target).parent)) not in sys.path:
        sys.path.append(folder)  # as for a script: what lies beside it can be imported
    try:
        module = import_module(target)
    except Exception as error:
        raise MissingFunctionError(
            f"task: importing {target} failed: {type(error).__name__}: {error}; give an "
            "importable module, or python:file.py:function"
        ) from error
    function: Function | None = getattr(module, name, None)
    if not callable(function):
        raise TrialError(f"task: {target} has no function {name}; check the name")
    unknown = [p for p in _required(function) if p not in PASSED]
    if unknown:
        raise TrialError(
            f"task: {name} has the parameter {unknown[0]}, but is called with those of "
            f"{', '.join(PASSED)} that it has; read settings from `config`"
        )
    return function


def _required(function: Function) -> list[str]:
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


@dataclass
class _Course:
    """What the function has reported so far, over all attempts; kept beside its own files."""

    value: float | None = None
    metrics: dict[str, float] | None = None
    best_progress: int | None = None
    last_progress: int = 0
    seconds: float = 0.0


class _Reporter:
    """The ``report`` that a training function is given."""

    def __init__(
        self,
        config: TrialConfig,
        paths: TrialPaths,
        memory: Callable[[], int],
        report: Callable[[Evaluation], bool],
        should_stop: Callable[[], bool],
        files: FunctionFiles | None,
    ) -> None:
        self.course = _read(paths)
        self.ending: tuple[Reason, str] | None = None
        self._config = config
        self._paths = paths
        self._memory = memory
        self._report = report
        self._should_stop = should_stop
        self._files = files
        self._earlier = self.course.seconds
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of all attempts."""
        return self._earlier + time.perf_counter() - self._began

    def __call__(self, progress: float, metrics: Mapping[str, float]) -> bool:
        """Note ``metrics`` at ``progress`` (0 to 1); return whether the function is to stop.

        Raises:
            TrialError: for a progress outside of 0 to 1, or metrics that are no numbers, or
                without the objective's.
        """
        if self.ending is not None:
            return True
        percent = _percent(progress)
        numbers = _numbers(metrics)
        metric = self._config.objective.metric
        if metric not in numbers:
            raise TrialError(
                f"report: the objective's metric {metric!r} is not among those reported "
                f"({', '.join(numbers) or 'none'}); report it, or change objective.metric"
            )
        value = numbers[metric]
        if not math.isfinite(value):
            self.ending = "diverged", f"{metric} became {value} at {percent} %"
            return True
        self._note(percent, value, numbers)
        evaluation = Evaluation(
            progress=percent,
            epoch=None,
            step=None,
            horizon=None,
            train_loss=numbers.get("train_loss"),
            # What has a place of its own is none of validation's.
            metrics={k: v for k, v in numbers.items() if k not in _OWN_PLACE or k == metric},
            learning_rate=numbers.get("learning_rate"),
            gradient_norm=None,
            seconds=self.seconds,
            memory=self._memory(),
        )
        go_on = self._report(evaluation)
        if not go_on and percent < 100:
            self.ending = "pruned", f"at {percent} % of its horizon"
        elif self._should_stop() and percent < 100:
            self.ending = "stopped", f"asked to, at {percent} %"
        elif self._files is not None and percent < 100:
            self._files.reported(percent)
        return self.ending is not None

    def _note(self, percent: int, value: float, numbers: dict[str, float]) -> None:
        course = self.course
        maximize = resolve_direction(self._config.objective) == "maximize"
        best = course.value
        if best is None or (value > best if maximize else value < best):
            course.value, course.metrics, course.best_progress = value, numbers, percent
        course.last_progress, course.seconds = percent, self.seconds
        temporary = self._paths.reports.with_name(f"{self._paths.reports.name}.tmp")
        temporary.write_text(json.dumps(asdict(course)), encoding="utf8")
        os.replace(temporary, self._paths.reports)


def run_function(
    config: TrialConfig,
    paths: TrialPaths,
    *,
    device: str,
    report: Callable[[Evaluation], bool],
    should_stop: Callable[[], bool],
    checkpoint_seconds: float = 0.0,
    mirror: Mirror | None = None,
) -> Outcome:
    """Call the training function of ``config``, and return how it went.

    It is called with those that it names of `PASSED`: ``config`` (its arguments, a mapping),
    ``device`` (``cpu`` or ``cuda:N``), ``folder`` (a `Path`, the same after a kill: what it saves
    there it may go on from), ``report`` and ``seed``. A mapping that it returns is its last
    report. What it raises is for the caller, but for memory that ran out.

    With ``mirror`` its folder is copied at its reports, when so many seconds have passed, and at
    the end.

    Raises:
        TrialError: the function cannot be imported, or reports nothing or nonsense.
        StorageError: its folder cannot be copied to or from where ``mirror`` keeps it.
    """
    function = load_function(config.task)
    where = open_device(device)
    release(where)  # of which the function knows nothing
    paths.create()
    files = FunctionFiles(paths, mirror, checkpoint_seconds) if mirror is not None else None
    notes = [] if files is None else files.fetch(_read(paths).last_progress)
    paths.function_folder.mkdir(exist_ok=True)
    reporter = _Reporter(config, paths, lambda: peak_memory(where), report, should_stop, files)
    resumed_from = reporter.course.last_progress
    offered = {
        "config": dict(config.arguments),
        "device": device,
        "folder": paths.function_folder,
        "report": reporter,
        "seed": config.seed,
    }
    named = inspect.signature(function).parameters
    try:
        result = function(**{name: offered[name] for name in PASSED if name in named})
        if isinstance(result, Mapping) and reporter.ending is None:
            reporter(1.0, result)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reporter.ending = "out_of_memory", memory_report(error, where)
    course = reporter.course
    if reporter.ending is None and course.value is None:
        raise TrialError(
            f"{config.task} reported nothing; call report(progress, metrics), or return metrics"
        )
    reason, note = reporter.ending or ("completed", "")
    if files is not None:
        notes += files.close(course.last_progress, ended=reason != "stopped")
    return Outcome(
        reason=reason,
        note="; ".join(said for said in (note, *notes) if said),
        value=course.value,
        metrics=course.metrics or {},
        best_progress=course.best_progress,
        steps=course.last_progress,
        horizon=None,
        seconds=reporter.seconds,
        peak_memory=peak_memory(where),
        samples_per_second=0.0,
        checkpoint=None,
        resumed_from=resumed_from,
    )


def _percent(progress: Any) -> int:
    number = isinstance(progress, int | float) and not isinstance(progress, bool)
    if not number or not 0 <= progress <= 1:
        raise TrialError(
            f"report: progress is the share that is done, from 0 to 1 (got {progress!r}); divide "
            "by the whole"
        )
    # A rung at 0 % would be none.
    return max(1, int(100 * progress + 1e-9))


def _numbers(metrics: Any) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        raise TrialError(f"report: metrics are a mapping of names to numbers (got {metrics!r})")
    numbers = {}
    for name, value in metrics.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError):
            raise TrialError(f"report: {name} must be a number (got {value!r})") from None
    return numbers


def _read(paths: TrialPaths) -> _Course:
    try:
        return _Course(**json.loads(paths.reports.read_text(encoding="utf8")))
    except (OSError, ValueError, TypeError):
        return _Course()
