"""The registry of sources: what may stand before the colon of ``data.source``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from sft_tune.errors import DataError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.tasks import Task
from sft_tune.trial.data.examples import Source, did_you_mean, listed
from sft_tune.trial.data.folders import open_path
from sft_tune.trial.data.functions import Function
from sft_tune.trial.data.hub import Hub
from sft_tune.trial.data.libraries import Digits, Torchvision

# Scheme -> reader, made from what stands after the colon. Making one imports and reads nothing.
SOURCES: dict[str, Callable[[str, Task, DataSpec, Path], Source]] = {
    "torchvision": Torchvision,
    "hub": Hub,
    "sklearn": Digits,
    "python": Function,
}


def open_source(task: Task, data: DataSpec, cache: Path) -> Source:
    """Return the reader of ``data.source``; a path where it has no scheme.

    Args:
        task: what the examples are for.
        data: the study file's section.
        cache: folder below which downloaded data sets are kept.

    Raises:
        DataError: for an unknown scheme, or a path that does not exist.
    """
    scheme, colon, name = data.source.partition(":")
    if colon and scheme in SOURCES:
        return SOURCES[scheme](name, task, data, cache)
    # Two letters at least: `C:\data` is a path.
    if colon and re.fullmatch(r"[A-Za-z][\w-]+", scheme) and not Path(data.source).exists():
        raise DataError(
            f"data.source: unknown scheme '{scheme}:'{did_you_mean(scheme, SOURCES) or '.'} "
            f"Known: {listed(f'{known}:' for known in SOURCES)}, or a path."
        )
    return open_path(task, data)
