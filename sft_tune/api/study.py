"""A study in the database, as a program asks it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sft_tune.api.best import Best
from sft_tune.errors import StudyNotFoundError
from sft_tune.session import open_database, quiet_optuna

if TYPE_CHECKING:
    import optuna
    import pandas as pd
    from plotly.graph_objects import Figure

    from sft_tune.spec.study import StudySpec
    from sft_tune.view.advice import Advice
    from sft_tune.view.finalists import Standings


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
        from sft_tune.store.finalist_rows import finalist_rows
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
        from sft_tune.spec.search import ConfirmSpec
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

        from sft_tune.store.finalist_rows import FinalistRow, finalist_rows
        from sft_tune.view.finalists_tables import run_records

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


def _path_or_url(place: str | None) -> Path | str | None:
    from sft_tune.spec.paths import is_url

    return place if place is None or is_url(place) else Path(place)
