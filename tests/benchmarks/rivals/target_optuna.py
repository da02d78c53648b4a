"""Optuna's defaults around the plain loop: TPE, and the median pruner fed by epoch."""

from __future__ import annotations

import json

import optuna

from tests.benchmarks.rivals.target import training_of, work


def main() -> None:
    """Search until the target is reached, or as many trials are done as are admitted."""
    folder, given = work()
    fine_tune = training_of(given)

    def objective(trial: optuna.Trial) -> float:
        config = {
            name: trial.suggest_categorical(name, one)
            if isinstance(one, list)
            else trial.suggest_int(name, one["low"], one["high"], step=one["step"])
            if "step" in one
            else trial.suggest_float(name, one["low"], one["high"], log=one.get("log", False))
            for name, one in given["space"].items()
        }
        seen: list[float] = []

        def report(accuracy: float) -> None:
            seen.append(accuracy)
            trial.report(accuracy, len(seen))
            if len(seen) < config["epochs"] and trial.should_prune():
                raise optuna.TrialPruned

        fine_tune(config, folder, report)
        return max(seen)

    def stop(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.value is not None and trial.value >= given["target"]:
            study.stop()

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{folder}/optuna.db",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=given["seed"]),
        pruner=optuna.pruners.MedianPruner(),
    )
    study.optimize(objective, n_trials=given["most"], callbacks=[stop])
    done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    result = {"best": max((t.value or 0.0 for t in done), default=0.0), "trials": len(study.trials)}
    (folder / "target_optuna.json").write_text(json.dumps(result), "utf8")


if __name__ == "__main__":
    main()
