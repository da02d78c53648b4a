"""Ray Tune with ASHA and random search around the plain loop: two trials at once."""

from __future__ import annotations

import json
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from tests.benchmarks.rivals.target import training_of, work


class Reached(tune.Stopper):
    """Ends the search when a trial has reached the target."""

    def __init__(self, target: float) -> None:
        """Wait for the accuracy ``target``."""
        self._target, self._reached = target, False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Take note of a result; end the trial that has reached the target."""
        self._reached = self._reached or result["accuracy"] >= self._target
        return self._reached

    def stop_all(self) -> bool:
        """Tell whether to end."""
        return self._reached


def _domain(one: Any) -> Any:
    if isinstance(one, list):
        return tune.choice(one)
    if "step" in one:
        return tune.choice(list(range(one["low"], one["high"] + 1, one["step"])))
    return (tune.loguniform if one.get("log") else tune.uniform)(one["low"], one["high"])


def main() -> None:
    """Search until the target is reached, or as many trials are done as are admitted."""
    folder, given = work()
    fine_tune = training_of(given)

    def trainable(config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        fine_tune(config, folder, lambda accuracy: tune.report({"accuracy": accuracy}))

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={name: _domain(one) for name, one in given["space"].items()},
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=given["most"],
            scheduler=ASHAScheduler(max_t=given["longest"], grace_period=1, reduction_factor=4),
            search_alg=tune.search.basic_variant.BasicVariantGenerator(random_state=given["seed"]),
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder / "ray"), verbose=0, stop=Reached(given["target"])
        ),
    )
    results = tuner.fit()
    ray.shutdown()
    # Of those that had not begun when the search ended there is nothing.
    frames = [one.metrics_dataframe for one in results]
    best = [float(f["accuracy"].max()) for f in frames if f is not None and "accuracy" in f]
    result = {"best": max(best, default=0.0), "trials": len(best)}
    (folder / "target_ray.json").write_text(json.dumps(result), "utf8")


if __name__ == "__main__":
    main()
