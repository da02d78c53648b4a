"""Tasks that are a user's own training function: ``python:module:function`` or a file's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from sft_tune.errors import UserError

SCHEME = "python:"
NONE = "none"
"""What stands for the data and the model of such a task, which are the function's affair."""

PASSED = ("config", "device", "folder", "report", "seed")
"""The parameters that a training function may have, in whatever order."""

SETTINGS = "__sft_tune__"

IN_WORKER = "SFT_TUNE_WORKER"
"""Environment variable that is set where training functions are imported to be run."""

Function = TypeVar("Function", bound=Callable[..., Any])


def is_function(task: str) -> bool:
    """Tell whether ``task`` names a function."""
    return task.startswith(SCHEME)


def task(
    *,
    space: Mapping[str, Any],
    metric: str,
    direction: Literal["maximize", "minimize"],
    **settings: Any,
) -> Callable[[Function], Function]:
    """Say of a training function what `tune` is to search for (a decorator).

    Example::

        @sft_tune.task(space={"depth": [1, 2, 4]}, metric="accuracy", direction="maximize")
        def train(config, report):
            for epoch in range(10):
                ...
                if report((epoch + 1) / 10, {"accuracy": accuracy}):
                    return

        if __name__ == "__main__":
            study = sft_tune.tune(train, trials=20)

    The function stays as it was. It is called with those that it names of ``config`` (its
    settings), ``device`` (``cpu``, ``cuda:0``), ``folder`` (for checkpoints; the same when a trial
    goes on after a kill), ``report`` (told the share that is done, 0 to 1, and metrics; answers
    whether to stop) and ``seed``. A mapping of metrics that it returns is its last report.

    Args:
        space: what is searched, by free names, as in a study file.
        metric: the objective, one of the metrics that the function reports.
        direction: ``maximize`` or ``minimize``.
        settings: ``name`` of the study (default: the function's), ``arguments`` (fixed settings,
            and defaults of those searched), and sections of a study file such as ``pruner``.
    """

    def mark(function: Function) -> Function:
        given = {"space": space, "metric": metric, "direction": direction, **settings}
        setattr(function, SETTINGS, given)
        return function

    return mark


def study_of(function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study that searches for the best arguments of ``function``, as a mapping.

    Args:
        function: it must be found by its name in a file: worker processes import it from there.
        settings: `space`, `metric`, `direction`, and what there is of `name`, `arguments` and
            sections of a study file.

    Raises:
        UserError: for a function that another process cannot import, or a setting that is missing.
    """
    given = {**getattr(function, SETTINGS, {}), **settings}
    missing = [key for key in ("space", "metric", "direction") if given.get(key) is None]
    if missing:
        raise UserError(
            f"a training function needs `space`, `metric` and `direction` (missing: "
            f"{', '.join(missing)}); give them to tune, or by the decorator @sft_tune.task"
        )
    return {
        "name": given.pop("name", None) or function.__name__,
        "task": reference(function),
        "objective": {"metric": given.pop("metric"), "direction": given.pop("direction")},
        **{key: value for key, value in given.items() if value is not None},
    }


def reference(function: Callable[..., Any]) -> str:
    """Return the task that names ``function`` for other processes.

    Raises:
        UserError: when it cannot be imported there: a lambda, an inner function, a notebook's.
    """
    name = getattr(function, "__qualname__", type(function).__name__)
    if not name.isidentifier():
        raise UserError(
            f"{name} cannot be imported by a worker process; define it with `def` at the top of "
            "a module"
        )
    module: str = function.__module__
    if "." in module:
        return f"{SCHEME}{module}:{name}"
    try:
        file = Path(inspect.getsourcefile(function) or "")
    except TypeError:
        file = Path()
    if file.suffix != ".py" or not file.is_file():
        raise UserError(
            f"{name} is in no file that a worker process could import it from (a notebook, or an "
            "interactive session); put it into a .py file, and import it here"
        )
    return f"{SCHEME}{file.resolve()}:{name}"
