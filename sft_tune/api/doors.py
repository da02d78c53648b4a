"""The three ways to a study: run one, open one, compare several."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sft_tune.api.study import Study
from sft_tune.errors import UserError
from sft_tune.session import forward_to, open_database, quiet_optuna, watching, with_budget
from sft_tune.spec.function_task import IN_WORKER, study_of

if TYPE_CHECKING:
    from sft_tune.spec.load import LoadedStudy
    from sft_tune.view.comparison import Comparison


def tune(
    spec: str | Path | Mapping[str, Any] | Callable[..., Any],
    *,
    name: str | None = None,
    space: Mapping[str, Any] | None = None,
    metric: str | None = None,
    direction: Literal["maximize", "minimize"] | None = None,
    storage: str | None = None,
    trials: int | None = None,
    hours: float | None = None,
    accept_changes: bool = False,
    progress: bool = True,
) -> Study:
    """Run a study until its budget is used, and return it.

    A study of this name that is in the database goes on from where it stands; one that is
    finished is returned at once. KeyboardInterrupt ends the worker; called again, the study goes
    on from the last checkpoint::

        study = sft_tune.tune("study.yaml", trials=20)
        study = sft_tune.tune({
            "name": "digits",
            "task": "image-classification",
            "data": {"source": "sklearn:digits"},
            "model": {"name": "builtin:convnet", "weights": "none"},
            "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
        }, trials=10)
        study = sft_tune.tune(train, name="depths", space={"depth": [1, 2, 4]},
                              metric="accuracy", direction="maximize", trials=10)

    Args:
        spec: path of a study file, or its sections as a mapping (relative paths in it are
            relative to the working directory), or a training function of yours (see `task`).
        name: of the study, for a training function. Default: the function's own.
        space: what is searched, for a training function.
        metric: the objective, for a training function.
        direction: ``maximize`` or ``minimize``, for a training function.
        storage: URL or .db file of the database. Default: ``storage.url`` of the study, else
            ``SFT_TUNE_STORAGE``, else ``sft_tune.db`` in the working directory.
        trials: total of trials, in place of the study's ``budget.trials``.
        hours: total of hours, in place of the study's ``budget.hours``.
        accept_changes: go on although sampler, pruner, seed or space differ from the database's.
        progress: show how far it is: a live screen on a terminal, else lines.

    Raises:
        StudyFileError: the study breaks rules; all of them are in its ``problems``.
        StudyExistsError: a different study of this name is in the database.
        DataError, ModelError: data or model are not what the study says.
        TrialError: too many trials in a row failed.
    """
    from sft_tune.run.events import Notify, ignore
    from sft_tune.run.slots import warm_up
    from sft_tune.run.study import start_study

    given = {"name": name, "space": space, "metric": metric, "direction": direction}
    loaded = with_budget(_loaded(_described(spec, given)), trials=trials, hours=hours)
    warm_up(loaded.spec)
    with open_database(storage or loaded.spec.storage.url, create=True) as db:
        url = db.url
        with ExitStack() as stack:
            stack.enter_context(quiet_optuna())
            notify: Notify = ignore
            if progress:
                notify = forward_to(stack.enter_context(watching(loaded.spec, db)))
            start_study(loaded, db, notify=notify, accept_changes=accept_changes)
    study = open_study(loaded.spec.name, url)
    if loaded.spec.confirm is not None:
        study.confirm(loaded.spec.confirm.top, loaded.spec.confirm.seeds)
    return study


def open_study(name: str, storage: str | None = None) -> Study:
    """Return the study ``name`` of the database, whether it is finished, running or stopped.

    Args:
        name: the study's.
        storage: URL or .db file of the database. Default: ``SFT_TUNE_STORAGE``, else
            ``sft_tune.db`` in the working directory.

    Raises:
        StudyNotFoundError: there is no such study; the message names those there are.
        StorageError: the database cannot be opened.
    """
    from sft_tune.store.records import find_study

    with open_database(storage) as db:
        record = find_study(db, name)
        return Study(record.name, record.spec, db.url)


def compare(studies: Sequence[str | Study], storage: str | None = None) -> Comparison:
    """Return studies of one objective side by side: what each found, for how much.

    A notebook shows it; ``studies``, ``steps``, ``shares`` and ``winners`` are frames::

        found = sft_tune.compare(["with-tpe", "with-random"])
        found.studies[["best", "device_seconds", "best_at_same_seconds"]]
        found.plot("seconds").show()

    Args:
        studies: two or more: names, `Study` objects, or ``DATABASE#NAME`` for a study in another
            database (a .db file or a URL). Studies that another program made with Optuna, too.
        storage: URL or .db file of the database of those named without one. Default:
            ``SFT_TUNE_STORAGE``, else ``sft_tune.db`` in the working directory.

    Raises:
        UserError: fewer than two studies, one twice, or not all of one metric and direction.
        StudyNotFoundError: there is no such study; the message names those there are.
    """
    from sft_tune.session import compare_studies

    places = [f"{s._url}#{s.name}" if isinstance(s, Study) else s for s in studies]
    return compare_studies(places, storage)


def _described(
    spec: str | Path | Mapping[str, Any] | Callable[..., Any], given: Mapping[str, Any]
) -> str | Path | Mapping[str, Any]:
    """Return the study file or mapping that ``spec`` is, or that a training function makes.

    Raises:
        UserError: for a function that workers cannot import, or settings that belong to one.
    """
    if os.environ.get(IN_WORKER):
        raise UserError(
            "tune was called by a worker that imported this file for its training function; put "
            'the call under `if __name__ == "__main__":`'
        )
    given = {key: value for key, value in given.items() if value is not None}
    if callable(spec):
        return study_of(spec, given)
    if given:
        raise UserError(
            f"only training functions take {', '.join(given)} (got a study file or mapping); write "
            "`name`, `space` and `objective` there"
        )
    return spec


def _loaded(spec: str | Path | Mapping[str, Any]) -> LoadedStudy:
    from sft_tune.spec.load import LoadedStudy, load_study, parse_study
    from sft_tune.spec.yaml12 import to_yaml

    if isinstance(spec, str | Path):
        return load_study(spec)
    root = Path.cwd()
    study = parse_study(spec, root=root)
    text = to_yaml(study.model_dump(mode="json", exclude_unset=True))
    # No file has it; the folder is the one that its relative paths were relative to.
    return LoadedStudy(study, text, root / "<mapping>")
