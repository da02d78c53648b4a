"""An Optuna objective around the plain script that tutorials show, one trial after the other.

Images through a DataLoader of PIL transforms with 2 workers; texts padded to the maximum length,
as the tutorials of transformers tokenise them.
"""

from __future__ import annotations

from pathlib import Path

import optuna

from tests.benchmarks.rivals.common import main, train_images, train_texts
from tests.benchmarks.work import Work


def search(work: Work, folder: Path) -> list[float]:
    """Train each learning rate; return the accuracies in their order."""

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_categorical("learning_rate", list(work.learning_rates))
        reported: list[float] = []
        if work.kind == "images":
            train_images(work, folder / "data", rate, 2, reported.append)
        else:
            train_texts(work, folder / "data", rate, True, reported.append)
        return reported[-1]

    rates = list(work.learning_rates)
    study = optuna.create_study(
        storage=f"sqlite:///{folder}/optuna.db",
        direction="maximize",
        sampler=optuna.samplers.GridSampler({"learning_rate": rates}, seed=0),
        pruner=optuna.pruners.NopPruner(),
    )
    study.optimize(objective, n_trials=len(rates))
    values = {trial.params["learning_rate"]: trial.value for trial in study.trials}
    return [float(values[rate] or 0.0) for rate in rates]


if __name__ == "__main__":
    main("optuna_script", search)
