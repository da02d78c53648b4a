"""Trials in other trackers: TensorBoard, MLflow, Weights & Biases; one run a trial.

A thread of its own writes, so that no step waits for it. What a tracker refuses or a network
loses is noted once, and the trial goes on. A trial that is resumed goes on with its run: rungs that
it reports again are not written twice.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.outcome import Evaluation

PATIENCE_SECONDS = 30.0
"""A trial that has ended waits so long for its trackers."""

Numbers = Mapping[str, float]


class Tracker(Protocol):
    """A run in a tracker; it is opened with the first rung."""

    def log(self, step: int, numbers: Numbers) -> None:
        """Write ``numbers`` at ``step``, unless they are there."""

    def close(self, reason: str) -> None:
        """End the run, for ``reason``."""


class Loggers:
    """The trackers of one trial, written to by a thread."""

    def __init__(self, names: Sequence[str], config: TrialConfig, folder: Path) -> None:
        """Open nothing yet.

        Args:
            names: of `TRACKERS`.
            config: of the trial.
            folder: the trial's; its name is the run's, its parent's name that of the project.
        """
        self._names = names
        self._settings = _flat(config)
        self._folder = folder
        self._notes: dict[str, str] = {}
        self._open: dict[str, Tracker] = {}
        self._work: queue.SimpleQueue[Callable[[str], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        if names:
            self._thread.start()

    def rung(self, evaluation: Evaluation) -> None:
        """Have a rung written, some time soon."""
        numbers = numbers_of(evaluation)
        step = evaluation.progress if evaluation.step is None else evaluation.step
        self._work.put(lambda name: self._tracker(name).log(step, numbers))

    def close(self, reason: str) -> list[str]:
        """End the runs, and return in words what could not be written."""
        if not self._names:
            return []
        self._work.put(lambda name: self._close(name, reason))
        self._work.put(None)
        self._thread.join(PATIENCE_SECONDS)
        if self._thread.is_alive():
            return [
                f"not all was logged: {', '.join(self._names)} took over {PATIENCE_SECONDS:g} s"
            ]
        return [f"not logged to {name}: {what}" for name, what in self._notes.items()]

    @contextmanager
    def closed_on_error(self) -> Iterator[None]:
        """End the runs as crashed when the block raises."""
        try:
            yield
        except BaseException:
            self.close("crashed")
            raise

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            for name in self._names:
                if name in self._notes:
                    continue
                try:
                    work(name)
                except Exception as error:  # a tracker is no part of the trial
                    self._notes[name] = f"{type(error).__name__}: {error}".split("\n")[0]

    def _tracker(self, name: str) -> Tracker:
        if name not in self._open:
            self._open[name] = TRACKERS[name](self._settings, self._folder)
        return self._open[name]

    def _close(self, name: str, reason: str) -> None:
        if name in self._open:
            self._open[name].close(reason)


def numbers_of(evaluation: Evaluation) -> dict[str, float]:
    """Return what a rung measured, by the names that trackers group by."""
    train = {
        "loss": evaluation.train_loss,
        "learning_rate": evaluation.learning_rate,
        "gradient_norm": evaluation.gradient_norm,
        "gradient_norm_max": evaluation.gradient_norm_max,
        "update_ratio": evaluation.update_ratio,
        "samples_per_second": evaluation.samples_per_second,
    }
    rest = {"epoch": evaluation.epoch, "memory": evaluation.memory, "seconds": evaluation.seconds}
    named = {
        "progress": evaluation.progress,
        **{f"validation/{name}": value for name, value in evaluation.metrics.items()},
        **{f"train/{name}": value for name, value in train.items()},
        **{f"trial/{name}": value for name, value in rest.items()},
    }
    return {name: float(value) for name, value in named.items() if value is not None}


def _flat(config: TrialConfig) -> dict[str, Any]:
    dump = config.model_dump(mode="json")
    flat = {"task": dump["task"], "seed": dump["seed"], **dump["arguments"]}
    for section in () if dump["arguments"] else ("model", "training"):
        flat |= {f"{section}.{key}": value for key, value in dump[section].items()}
    return flat


class TensorBoard:
    """Event files in the trial's folder: ``tensorboard --logdir`` of the study's shows all."""

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        """Open nothing yet: the first step says from where on earlier points are replaced."""
        self._settings = settings
        self._folder = folder
        self._writer: Any = None

    def log(self, step: int, numbers: Numbers) -> None:
        """Write ``numbers`` at ``step``."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            fresh = not any(self._folder.glob("events.out.tfevents.*"))
            # Readers drop what an earlier attempt wrote from this step on.
            self._writer = SummaryWriter(str(self._folder), purge_step=None if fresh else step)
            if fresh:
                self._writer.add_text("configuration", f"```\n{json.dumps(self._settings)}\n```")
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, reason: str) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class MLflow:
    """A run of the experiment that is named after the study, where MLflow's client is set to."""

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        """Open the trial's run, or make it."""
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        kept = folder / "mlflow_run.txt"
        if kept.exists():
            self._run: str = kept.read_text(encoding="utf8")
            self._client.set_terminated(self._run, "RUNNING")
            history = self._client.get_metric_history(self._run, "progress")
            self._last = max((point.step for point in history), default=-1)
            return
        run = self._client.create_run(self._experiment(folder.parent.name), run_name=folder.name)
        self._run, self._last = run.info.run_id, -1
        kept.write_text(self._run, encoding="utf8")
        for name, value in settings.items():
            self._client.log_param(self._run, name, str(value)[:500])

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # it is there, or another worker was faster
            found = self._client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def log(self, step: int, numbers: Numbers) -> None:
        """Write ``numbers`` at ``step``."""
        from mlflow.entities import Metric

        if step > self._last:
            now = int(time.time() * 1000)
            points = [Metric(name, value, now, step) for name, value in numbers.items()]
            self._client.log_batch(self._run, metrics=points)
            self._last = step

    def close(self, reason: str) -> None:
        """End the run; one that was stopped may go on."""
        self._client.set_tag(self._run, "reason", reason)
        status = {"stopped": "KILLED", "diverged": "FAILED", "out_of_memory": "FAILED"}
        self._client.set_terminated(self._run, status.get(reason, "FINISHED"))


class WeightsAndBiases:
    """A run of the project that is named after the study; offline where WANDB_MODE says so."""

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        """Open the trial's run, or make it."""
        import wandb

        self._kept = folder / "wandb_step.txt"
        self._last = int(self._kept.read_text(encoding="utf8")) if self._kept.exists() else -1
        self._run = wandb.init(
            project=folder.parent.name,
            name=folder.name,
            id=hashlib.sha256(str(folder).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True),
        )

    def log(self, step: int, numbers: Numbers) -> None:
        """Write ``numbers`` at ``step``."""
        if step > self._last:
            self._run.log(dict(numbers), step=step)
            self._kept.write_text(str(step), encoding="utf8")
            self._last = step

    def close(self, reason: str) -> None:
        """End the run; one that was stopped may go on."""
        self._run.summary["reason"] = reason
        self._run.finish()


TRACKERS: dict[str, Callable[[Mapping[str, Any], Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
