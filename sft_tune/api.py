"""The program's door: run a study, open one, and use what it found.

The work is done by other processes (`python -m sft_tune.run.worker`), so a script needs no
``if __name__ == "__main__"`` guard, and the process that calls `tune` never imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sft_tune.errors import ModelError, StudyNotFoundError, UserError
from sft_tune.session import forward_to, open_database, quiet_optuna, watching, with_budget
from sft_tune.spec.function_task import IN_WORKER, study_of

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    import torch
    from plotly.graph_objects import Figure

    from sft_tune.spec.config import TrialConfig
    from sft_tune.spec.load import LoadedStudy
    from sft_tune.spec.space import Value
    from sft_tune.spec.study import StudySpec
    from sft_tune.view.advice import Advice
    from sft_tune.view.comparison import Comparison
    from sft_tune.view.finalists import Standings


def tune(
    spec: str | Path | Mapping[str, Any] | Callable[..., Any],
    *,
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
        study = sft_tune.tune(train, space={"depth": [1, 2, 4]}, metric="accuracy",
                              direction="maximize", trials=10)

    Args:
        spec: path of a study file, or its sections as a mapping (relative paths in it are
            relative to the working directory), or a training function of yours (see `task`).
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
    from sft_tune.run.study import start_study

    given = {"space": space, "metric": metric, "direction": direction}
    loaded = with_budget(_loaded(_described(spec, given)), trials=trials, hours=hours)
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


@dataclass(frozen=True)
class Best:
    """The best trial of a study, on validation.

    Attributes:
        number: of the trial.
        config: its complete configuration.
        params: its point of the space.
        value: the objective at its best rung.
        metrics: every validation metric there.
        checkpoint: its best weights (safetensors), a path, or a URL where `storage.artifacts` is
            one; None where they were not kept.
        confirmed: whether fresh seeds say that it is likely the best (see `Study.confirm`).
    """

    number: int
    config: TrialConfig
    params: Mapping[str, Value]
    value: float
    metrics: Mapping[str, float]
    checkpoint: Path | str | None
    confirmed: bool = False
    _study: Study | None = field(default=None, repr=False, compare=False)

    def load_model(self, device: str = "cpu") -> torch.nn.Module:
        """Return the fine-tuned model, in evaluation mode; its ``labels`` are the classes' names.

        Image models of torchvision take pixels [b, 3, h, w], scaled to 0..1 and normalized by
        its ``normalize`` (mean, deviation), and return logits [b, classes]. Models of
        transformers are called as their library says.

        Raises:
            ModelError: when the checkpoint is missing or damaged, or cannot be fetched.
        """
        if self.checkpoint is None:
            raise ModelError(f"the weights of trial {self.number} were not kept")
        from sft_tune.run.messages import cache_folder
        from sft_tune.trial.load import fetch_checkpoint, load_checkpoint

        path = self.checkpoint
        if isinstance(path, str):
            path = fetch_checkpoint(path, cache_folder())
        return load_checkpoint(path, device)

    def export(self, folder: str | Path, *, onnx: bool = False, force: bool = False) -> Path:
        """Write these weights to ``folder`` in their library's own format; see `Study.export`."""
        if self._study is None:
            raise ModelError(f"trial {self.number} is of no study; use Study.export")
        return self._study.export(folder, trial=self.number, onnx=onnx, force=force)


@dataclass(frozen=True, repr=False)
class Study:
    """A study in the database. Every property reads anew, so that one that runs can be watched.

    Attributes:
        name: its name.
        spec: the study file as parsed, paths absolute.
    """

    name: str
    spec: StudySpec
    _url: str = field(repr=False)

    def __repr__(self) -> str:
        from sft_tune.store.urls import redact

        return f"Study({self.name!r}, storage={redact(self._url)!r})"

    @property
    def best(self) -> Best:
        """The completed trial with the best value on validation.

        Raises:
            StudyNotFoundError: no trial has completed yet.
        """
        from sft_tune.spec.config import TrialConfig
        from sft_tune.store.reads import best_row

        with open_database(self._url) as db:
            row = best_row(db, self.name)
        found = self._standings()
        if row is None or row.config is None or row.value is None:
            raise StudyNotFoundError(f"study {self.name!r} has no completed trial yet")
        return Best(
            number=row.number,
            config=TrialConfig.model_validate(row.config),
            params=row.params,
            value=row.value,
            metrics=row.metrics,
            checkpoint=_path_or_url(row.checkpoint),
            confirmed=found is not None and found.confirmed,
            _study=self,
        )

    def _standings(self) -> Standings | None:
        from sft_tune.store.finalists import finalist_rows
        from sft_tune.store.reads import trial_rows
        from sft_tune.view.finalists import standings

        with open_database(self._url) as db:
            runs = finalist_rows(db, self.name)
            return standings(self.spec, trial_rows(db, self.name), runs) if runs else None

    def confirm(self, top: int = 3, seeds: int = 5) -> Standings | None:
        """Train the ``top`` trials and the default again over ``seeds`` fresh seeds each.

        Each run is then evaluated on the test split, where there is one. What was confirmed
        before is not trained again; interrupted, the next call goes on.

        Returns:
            How the finalists stand, with ``leader``, ``confirmed`` and ``finalists``; None when no
            run ended with a value.
        """
        from sft_tune.run.confirm import confirm_study
        from sft_tune.spec.study import ConfirmSpec
        from sft_tune.store.records import find_study

        with open_database(self._url, create=True) as db, quiet_optuna():
            confirm_study(find_study(db, self.name), db, ConfirmSpec(top=top, seeds=seeds))
        return self._standings()

    def finalists(self) -> pd.DataFrame:
        """Return a row a confirmation run: the finalists over fresh seeds.

        Columns: ``number`` of the trial, ``seed``, ``phase``, ``reason``, ``value`` (the objective
        on validation), ``validation_accuracy``, ``test_accuracy`` and the like, ``seconds``::

            study.finalists().groupby("number")["test_accuracy"].agg(["mean", "std"])
        """
        import pandas as pd

        from sft_tune.store.finalists import FinalistRow, finalist_rows
        from sft_tune.view.finalists import run_records

        with open_database(self._url) as db:
            records = run_records(finalist_rows(db, self.name))
        columns = list(records[0]) if records else list(FinalistRow._fields)
        return pd.DataFrame.from_records(records, columns=columns)

    def advise(self) -> list[Advice]:
        """Return what to change next, each piece with its numbers; empty: nothing stands out.

        ``piece.text`` says it, ``piece.section`` and ``piece.line`` are of the study file::

            for piece in study.advise():
                print(piece.text)
        """
        import time

        from sft_tune.view.judgement import advice_of
        from sft_tune.view.material import gather

        with open_database(self._url) as db:
            return advice_of(gather(db, self.name, time.time(), importances=False))

    def marginal(self, name: str) -> pd.DataFrame:
        """Return the effect of the hyperparameter ``name``: a row a value, or part of its range.

        Columns: ``n``, ``mean`` with its 95 % interval (``low``, ``high``), ``median``, ``best``
        at the progress that all trials reached; ``adjusted``, the mean that a random forest gives
        all trials with this value; ``completed``, ``final_mean``, ``final_best`` at the end.

        Raises:
            UserError: it is not searched, or no trial has a value yet.
        """
        import time

        import pandas as pd

        from sft_tune.view.judgement import evidence_of, unit_of
        from sft_tune.view.marginal import marginal, marginal_records
        from sft_tune.view.material import gather

        with open_database(self._url) as db:
            material = gather(db, self.name, time.time(), importances=False)
        found = marginal(evidence_of(material), name, unit=unit_of(material))
        return pd.DataFrame.from_records(marginal_records(found)).set_index("value")

    def export(
        self,
        folder: str | Path,
        *,
        trial: int | None = None,
        refit: bool = False,
        soup: bool = False,
        onnx: bool = False,
        force: bool = False,
    ) -> Path:
        """Write the fine-tuned model to ``folder`` in its library's own format, and return that.

        With a model card, and a study file that trains it again. The files are loaded in a fresh
        process and evaluated on validation again before the folder appears::

            study.export("model")
            AutoModelForSequenceClassification.from_pretrained("model")

        Args:
            folder: a new or empty folder.
            trial: number of the trial; None: the best.
            refit: train its configuration on train and validation together first.
            soup: average the weights of the best trials greedily, as far as validation gains.
            onnx: write ``model.onnx`` too (``pip install 'sft_tune[onnx]'``).
            force: replace an earlier export.

        Raises:
            ExportError: the exported files do not give the trial's numbers.
            UserError: the folder may not be used, or the weights were not kept.
        """
        from sft_tune.session import export_study, way_of_export

        how = way_of_export(trial, refit=refit, soup=soup)
        with open_database(self._url) as db:
            return export_study(
                *(db, self.name, Path(folder)), trial=trial, how=how, onnx=onnx, force=force
            ).folder

    def trials(self) -> pd.DataFrame:
        """Return a row a trial, its number as the index.

        Columns: ``state``, ``reason``, ``value``; a column a searched parameter under its own
        name (``learning_rate``, ``model.name``); validation metrics at the best rung
        (``validation_accuracy``); ``best_progress`` and ``last_progress`` in percent, ``seconds``
        on the device, ``started``, ``ended``, ``checkpoint``, ``note`` and the like::

            study.trials().groupby("schedule")["value"].max()
        """
        import pandas as pd

        from sft_tune.store.reads import trial_rows
        from sft_tune.view.records import TRIAL_COLUMNS, trial_records

        with open_database(self._url) as db:
            records = trial_records(trial_rows(db, self.name))
        columns = list(records[0]) if records else list(TRIAL_COLUMNS)
        return pd.DataFrame.from_records(records, columns=columns, index="number")

    def evaluations(self, number: int | None = None) -> pd.DataFrame:
        """Return a row a rung, of every trial or of trial ``number``: the learning curves.

        Columns: ``number``, ``progress`` (percent of the trial's own schedule), ``epoch``,
        ``step``, ``train_loss``, ``learning_rate``, ``gradient_norm`` (median since the rung
        before), ``gradient_norm_max``, ``update_ratio`` (how far a step moves the weights),
        ``samples_per_second``, ``memory`` (peak, bytes), ``examples`` (of validation, where the
        rung is measured on a part of it), ``seconds``, and the validation metrics
        (``validation_loss``, ``validation_accuracy``)::

            study.evaluations().pivot(index="progress", columns="number",
                                      values="validation_accuracy").plot()
        """
        import pandas as pd

        from sft_tune.store.reads import evaluation_rows
        from sft_tune.view.records import RUNG_COLUMNS, evaluation_records

        with open_database(self._url) as db:
            records = evaluation_records(evaluation_rows(db, self.name, number))
        columns = list(records[0]) if records else list(RUNG_COLUMNS)
        return pd.DataFrame.from_records(records, columns=columns)

    def plot(self, name: str, *params: str) -> Figure:
        """Return a plot of the study as a figure of plotly.

        A notebook shows it::

            study.plot("history")
            study.plot("slice", "learning_rate", "weight_decay")
            study.plot("curves").write_html("curves.html")

        Args:
            name: ``history``, ``curves``, ``importances``, ``slice``, ``contour``, ``parallel``,
                ``cost``, ``timeline`` or ``default``.
            params: hyperparameters for ``slice`` and ``contour``. Default: the two most
                important.

        Raises:
            UserError: there is no such plot or hyperparameter.
        """
        import time

        from sft_tune.view.material import gather
        from sft_tune.view.plots.catalog import draw_plot, needs_importances
        from sft_tune.view.plots.style import titled

        with open_database(self._url) as db:
            ranked = needs_importances(name, params)
            material = gather(db, self.name, time.time(), importances=ranked)
        return titled(draw_plot(material, name, params))

    def _repr_html_(self) -> str:
        """Return the study at a glance, for a notebook: what it found, and how trials ended."""
        import time

        from sft_tune.view.glance import glance_html
        from sft_tune.view.material import gather

        with open_database(self._url) as db:
            return glance_html(gather(db, self.name, time.time(), importances=False))

    @property
    def optuna(self) -> optuna.Study:
        """The same study as Optuna sees it, for its plots, importances and other tools."""
        import optuna

        from sft_tune.store.optuna_storage import open_optuna_storage

        with open_database(self._url) as db:
            return optuna.load_study(study_name=self.name, storage=open_optuna_storage(db))


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
            f"{', '.join(given)} are for training functions; a study file or mapping has them as "
            "`space` and `objective`"
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


def _path_or_url(place: str | None) -> Path | str | None:
    from sft_tune.spec.paths import is_url

    return place if place is None or is_url(place) else Path(place)
