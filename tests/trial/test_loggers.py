"""One run a trial in each tracker, through its own client and without a network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sft_tune.trial.loggers import Loggers, numbers_of
from sft_tune.trial.outcome import Evaluation


def rung(step: int, loss: float) -> Evaluation:
    return Evaluation(
        progress=10 * step,
        epoch=step / 10,
        step=step,
        horizon=10,
        train_loss=loss,
        metrics={"accuracy": 0.5, "loss": loss},
        learning_rate=1e-3,
        gradient_norm=2.0,
        seconds=1.0,
        memory=2**20,
    )


def attempt(name: str, config: Any, folder: Path, steps: Sequence[int], reason: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    loggers = Loggers([name], config, folder)
    for step in steps:
        loggers.rung(rung(step, 1 / step))
    return loggers.close(reason)


def test_a_rung_has_a_name_for_each_number_that_was_measured() -> None:
    numbers = numbers_of(rung(2, 0.5))
    assert numbers["validation/accuracy"] == numbers["train/loss"] == 0.5
    assert numbers["trial/memory"] == 2**20 and "train/update_ratio" not in numbers


def test_tensorboard_s_points_are_there_once_after_a_resume(tmp_path: Path, digits: Any) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "study" / "trial-00003"
    # Killed after rung 3, on again from rung 2's checkpoint.
    assert attempt("tensorboard", digits(), folder, [1, 2, 3], "stopped") == []
    assert attempt("tensorboard", digits(), folder, [3, 4], "completed") == []
    events = reader.EventAccumulator(str(folder)).Reload()
    points = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert points == [(s, pytest.approx(1 / s)) for s in (1, 2, 3, 4)]
    assert "configuration/text_summary" in events.Tags()["tensors"]


def test_mlflow_has_one_run_that_goes_on(
    tmp_path: Path, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tracking = pytest.importorskip("mlflow.tracking")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        folder = tmp_path / "study" / "trial-00003"
        assert attempt("mlflow", digits(), folder, [1, 2, 3], "stopped") == []
        assert attempt("mlflow", digits(), folder, [3, 4], "completed") == []
        client = tracking.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        experiment = client.get_experiment_by_name("study")
        (run,) = client.search_runs([experiment.experiment_id])
        history = client.get_metric_history(run.info.run_id, "train/loss")
    assert (run.info.run_name, run.info.status) == ("trial-00003", "FINISHED")
    assert [point.step for point in sorted(history, key=lambda p: p.step)] == [1, 2, 3, 4]
    assert run.data.params["training.learning_rate"] == "0.003"
    assert run.data.tags["reason"] == "completed"


def test_weights_and_biases_writes_a_run_a_trial_offline(
    tmp_path: Path, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_MODE", "offline")
        folder = tmp_path / "study" / "trial-00003"
        assert attempt("wandb", digits(), folder, [1, 2, 3], "stopped") == []
        assert (folder / "wandb_step.txt").read_text() == "3"
        assert attempt("wandb", digits(), folder, [3, 4], "completed") == []
    assert (folder / "wandb_step.txt").read_text() == "4"
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    # Both attempts are of one run: offline-run-TIME-ID, and a count where the time is the same.
    assert runs and len({run.name.split("-")[3] for run in runs}) == 1
    assert all(any(run.glob("*.wandb")) for run in runs)


def test_a_tracker_that_fails_is_noted_and_no_more(
    tmp_path: Path, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_tune.trial import loggers

    def broken(settings: Any, folder: Path) -> Any:
        raise ConnectionError("no such host\nand more")

    monkeypatch.setitem(loggers.TRACKERS, "mlflow", broken)
    assert attempt("mlflow", digits(), tmp_path / "t", [1, 2], "completed") == [
        "not logged to mlflow: ConnectionError: no such host"
    ]


def test_without_trackers_nothing_is_written(tmp_path: Path, digits: Any) -> None:
    loggers = Loggers([], digits(), tmp_path)
    loggers.rung(rung(1, 1.0))
    assert loggers.close("completed") == [] and list(tmp_path.iterdir()) == []
