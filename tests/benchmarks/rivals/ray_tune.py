"""Ray Tune without early stopping (FIFO): two trials at once, each with one CPU.

Ray gives each trial as many threads as CPUs. Images come from DataLoaders in the trial's own
process (a third and fourth process would take the cores from the trials); texts are padded to the
longest of their batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray import tune

from tests.benchmarks.rivals.common import main, train_images, train_texts
from tests.benchmarks.work import Work


def search(work: Work, folder: Path) -> list[float]:
    """Train each learning rate; return the accuracies in their order."""

    def trainable(config: dict[str, Any]) -> None:
        def report(accuracy: float) -> None:
            tune.report({"accuracy": accuracy})

        if work.kind == "images":
            train_images(work, folder / "data", config["learning_rate"], 0, report)
        else:
            train_texts(work, folder / "data", config["learning_rate"], False, report)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"learning_rate": tune.grid_search(list(work.learning_rates))},
        tune_config=tune.TuneConfig(metric="accuracy", mode="max"),
        run_config=tune.RunConfig(storage_path=str(folder / "ray"), verbose=0),
    )
    results = tuner.fit()
    ray.shutdown()
    values = {one.config["learning_rate"]: one.metrics["accuracy"] for one in results}
    return [values[rate] for rate in work.learning_rates]


if __name__ == "__main__":
    main("ray_tune", search)
