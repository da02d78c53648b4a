"""Hyperparameter optimization for supervised fine-tuning.

Give it a pretrained model, a labelled data set and a budget; it gives back the best fine-tuned
checkpoint, the configuration that made it, and the evidence::

    import sft_tune

    study = sft_tune.tune("study.yaml", trials=20)
    print(study.best.value, study.best.params)
    model = study.best.load_model()

Importing this package is cheap: torch, Optuna and pandas are imported when they are needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sft_tune.errors import (
    DataError,
    ExportError,
    MissingFunctionError,
    MissingModelError,
    ModelError,
    Problem,
    SftTuneError,
    StorageError,
    StudyExistsError,
    StudyFileError,
    StudyNotFoundError,
    TrialError,
    UserError,
    WorkerError,
)

if TYPE_CHECKING:
    from sft_tune.api import Best, Study, compare, open_study, tune
    from sft_tune.spec.function_task import task

    __version__: str

__all__ = [
    "Best",
    "DataError",
    "ExportError",
    "MissingFunctionError",
    "MissingModelError",
    "ModelError",
    "Problem",
    "SftTuneError",
    "StorageError",
    "Study",
    "StudyExistsError",
    "StudyFileError",
    "StudyNotFoundError",
    "TrialError",
    "UserError",
    "WorkerError",
    "__version__",
    "compare",
    "open_study",
    "task",
    "tune",
]

_IN_API = ("Best", "Study", "compare", "open_study", "tune")


def __getattr__(name: str) -> Any:
    """Import what `api` has, and look the version up, when it is first asked for (PEP 562)."""
    if name in _IN_API:
        from sft_tune import api

        return getattr(api, name)
    if name == "task":
        from sft_tune.spec.function_task import task

        return task
    if name == "__version__":
        from importlib.metadata import version

        return version("sft_tune")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
