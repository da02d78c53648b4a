from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import pytest

import sft_tune
from sft_tune.errors import DataError, ModelError, StudyExistsError, TrialError, UserError
from sft_tune.run import searcher
from sft_tune.run.dispatcher import Dispatcher
from sft_tune.run.engine import LocalWorker
from sft_tune.run.events import Event, Notice, RungReached, TrialEnded, TrialStarted
from sft_tune.run.register import configs_to_check
from sft_tune.run.study import NOT_WEIGHED, WEIGHED, Ended, start_study
from sft_tune.search.samplers import make_sampler
from sft_tune.spec.load import load_study
from sft_tune.store import control, reads
from sft_tune.store.database import Database
from sft_tune.store.records import find_study
from tests.run.conftest import write_study

StudyFile = Callable[..., Path]


def start(path: Path, url: str = "sqlite:///t.db", **options: Any) -> tuple[Ended, list[Event]]:
    events: list[Event] = []
    listen = options.pop("notify", lambda event: None)

    def notify(event: Event) -> None:
        events.append(event)
        listen(event)

    db = Database.open(url, create=True)
    try:
        return start_study(load_study(path), db, notify=notify, **options), events
    finally:
        db.dispose()


def rows(name: str = "tiny", url: str = "sqlite:///t.db") -> list[reads.TrialRow]:
    db = Database.open(url, create=False)
    try:
        return reads.trial_rows(db, name)
    finally:
        db.dispose()


class Calm(NamedTuple):
    """A study of five trials that nothing disturbed, two checkpoints kept; only to be read."""

    folder: Path
    ended: Ended
    events: list[Event]

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder}/t.db"

    def copied(self, folder: Path) -> Path:
        """Copy the study to ``folder`` as a test that goes on with it needs it."""
        for name in ("t.db", "tiny.json"):
            shutil.copy(self.folder / name, folder)
        shutil.copytree(self.folder / "sft_tune_runs", folder / "sft_tune_runs")
        return folder / "tiny.json"


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder = tmp_path_factory.mktemp("calm")
    path = write_study(folder, budget={"trials": 5}, resources={"keep_checkpoints": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_TUNE_CACHE", str(folder / "cache"))
        return Calm(folder, *start(path, f"sqlite:///{folder}/t.db"))


def test_a_study_ends_with_its_budget_and_a_best_checkpoint(calm: Calm) -> None:
    assert calm.ended == Ended("trials", continued=False)
    trials = rows(url=calm.url)
    assert [t.number for t in trials] == [0, 1, 2, 3, 4]
    assert {t.state for t in trials} == {"COMPLETE"}
    assert trials[0].params == {"learning_rate": 3e-3, "schedule": "linear", "epochs": 2}
    best = max(trials, key=lambda t: t.value)
    assert best.checkpoint is not None and Path(best.checkpoint).is_file()
    started = [e.number for e in calm.events if isinstance(e, TrialStarted)]
    finished = [e for e in calm.events if isinstance(e, TrialEnded)]
    assert started == [e.number for e in finished] == [0, 1, 2, 3, 4]
    assert [e.number for e in finished if e.leads][-1] == best.number
    assert sum(isinstance(e, RungReached) for e in calm.events) == 5 * 4


def test_only_the_best_checkpoints_stay(calm: Calm) -> None:
    trials = rows(url=calm.url)
    kept = {t.number for t in trials if t.checkpoint is not None}
    best = sorted(trials, key=lambda t: (-t.value, t.number))[:2]
    assert kept == {t.number for t in best}
    on_disk = {p.parent.name for p in calm.folder.glob("sft_tune_runs/tiny/trial-*/*.safetensors")}
    assert on_disk == {f"trial-{number:05d}" for number in kept}


def test_plain_optuna_reads_the_study(calm: Calm) -> None:
    study = optuna.load_study(study_name="tiny", storage=calm.url)
    trials = rows(url=calm.url)
    assert study.best_value == max(t.value for t in trials)
    assert set(optuna.importance.get_param_importances(study)) <= {
        "learning_rate", "schedule", "epochs",
    }  # fmt: skip
    for ours, theirs in zip(trials, study.trials, strict=True):
        assert theirs.params == ours.params
        assert sorted(theirs.intermediate_values) == [25, 50, 75, 100]
        assert theirs.user_attrs["sft:reason"] == ours.reason == "completed"
        assert theirs.user_attrs["sft:config"]["training"]["epochs"] == ours.params["epochs"]


def active_seconds() -> float:
    db = Database.open("sqlite:///t.db", create=False)
    try:
        seconds = reads.study_row(db, "tiny").active_seconds
    finally:
        db.dispose()
    assert seconds is not None
    return seconds


def test_a_finished_study_says_so_and_counts_no_time(calm: Calm, tmp_path: Path) -> None:
    path = calm.copied(tmp_path)
    before = active_seconds()
    again, events = start(path)
    assert again == Ended("finished", continued=True)
    assert not [e for e in events if isinstance(e, TrialStarted)]
    assert 0 < before < 60
    assert before <= active_seconds() < before + 5


def test_a_changed_study_is_refused_with_what_differs_and_a_larger_budget_continues_it(
    calm: Calm, study_file: StudyFile, tmp_path: Path
) -> None:
    calm.copied(tmp_path)
    with pytest.raises(StudyExistsError, match=r"training.batch_size: 16 -> 32"):
        start(study_file(training={"batch_size": 32}, budget={"trials": 6}))
    changed = study_file(sampler={"name": "tpe"}, budget={"trials": 6})
    with pytest.raises(StudyExistsError, match="--accept-changes"):
        start(changed)
    assert len(rows()) == 5
    more, _ = start(changed, accept_changes=True)
    assert more == Ended("trials", continued=True)
    assert len(rows()) == 6


def test_a_file_that_leaves_the_rungs_to_us_goes_on_with_those_that_its_trials_have(
    calm: Calm, study_file: StudyFile, tmp_path: Path
) -> None:
    calm.copied(tmp_path)
    more, _ = start(study_file(objective=None, pruner={"name": "none"}, budget={"trials": 6}))
    assert more == Ended("trials", continued=True)
    db = Database.open("sqlite:///t.db", create=False)
    try:
        found = reads.evaluation_rows(db, "tiny", 5)
    finally:
        db.dispose()
    assert [row.progress for row in found] == [25, 50, 75, 100]
    with pytest.raises(StudyExistsError, match=r"objective.rungs: 4 -> 5"):
        start(study_file(objective={"rungs": 5}, budget={"trials": 6}))


def test_a_trial_has_five_rungs_where_ten_would_be_dear(study_file: StudyFile) -> None:
    start(study_file(objective=None, space={}, training={"epochs": 8}, budget={"trials": 1}))
    db = Database.open("sqlite:///t.db", create=False)
    try:
        found = reads.evaluation_rows(db, "tiny", 0)
    finally:
        db.dispose()
    assert [row.progress for row in found] == [20, 40, 60, 80, 100]


def test_a_target_ends_the_study(study_file: StudyFile) -> None:
    ended, _ = start(study_file(budget={"trials": 4, "target": 0.01}))
    assert ended.why == "target"
    assert len(rows()) == 1


def test_what_is_asked_for_runs_although_the_target_is_reached(study_file: StudyFile) -> None:
    path = study_file(budget={"trials": 4, "target": 0.01})
    start(path)
    db = Database.open("sqlite:///t.db", create=False)
    try:
        point = {**rows()[0].params, "learning_rate": 2e-3}
        control.enqueue(db, find_study(db, "tiny").id, [point], now=1.0)
    finally:
        db.dispose()
    again, _ = start(path)
    assert again == Ended("target", continued=True)
    assert [row.params["learning_rate"] for row in rows()][1:] == [2e-3]


def test_hours_that_are_used_let_no_trial_start(study_file: StudyFile) -> None:
    # The default configuration takes longer than 0.7 s, and the first claim comes sooner.
    path = study_file(
        training={"epochs": 200},
        space={"learning_rate": {"low": 1e-4, "high": 1e-2}},
        budget={"trials": 4, "hours": 2e-4},
    )
    ended, _ = start(path)
    assert ended.why == "hours"
    assert [t.state for t in rows()] == ["COMPLETE"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": {"classes": [0, 77]}}, DataError, "77"),
        ({"model": {"name": "torchvision:resnet19"}}, ModelError, "resnet18"),
    ],
)
def test_a_study_that_cannot_run_is_refused_before_it_is_registered(
    study_file: StudyFile, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        start(study_file(**changes))
    db = Database.open("sqlite:///t.db", create=False)
    assert reads.list_studies(db) == []
    db.dispose()


def test_an_equal_configuration_is_not_trained_again(study_file: StudyFile) -> None:
    space = {"schedule": ["linear", "cosine"]}
    _, events = start(study_file(space=space, budget={"trials": 6}))
    trials = rows()
    assert len(trials) == 6
    trained = [e.number for e in events if isinstance(e, TrialStarted)]
    assert len(trained) == 2
    for trial in trials:
        if trial.number not in trained:
            first = next(t for t in trials if t.params == trial.params)
            assert (trial.reason, trial.duplicate_of) == ("duplicate", first.number)
            assert (trial.value, trial.state) == (first.value, "COMPLETE")


def test_a_grid_has_each_cell_once_over_restarts(study_file: StudyFile) -> None:
    grid = {"space": {"schedule": ["linear", "cosine"], "epochs": [1, 2]}}
    start(study_file(sampler={"name": "grid"}, budget={"trials": 2}, **grid))
    start(study_file(sampler={"name": "grid"}, budget=None, **grid))
    cells = [tuple(sorted(t.params.items())) for t in rows()]
    assert len(cells) == len(set(cells)) == 4


def test_a_trial_whose_worker_is_killed_goes_on_under_its_number(
    calm: Calm, study_file: StudyFile
) -> None:
    workers: list[LocalWorker] = []

    def kill_in_trial_1(event: Event) -> None:
        if isinstance(event, RungReached) and event.number == 1 and event.progress == 50:
            if len(killed) == 0:
                killed.append(event.number)
                os.kill(workers[0].pid, signal.SIGKILL)

    killed: list[int] = []

    def watch(dispatcher: Dispatcher) -> None:
        workers.extend(w for w in dispatcher.workers if isinstance(w, LocalWorker))

    ended, events = start(
        study_file(budget={"trials": 2}), notify=kill_in_trial_1, on_dispatcher=watch
    )
    assert killed == [1] and ended.why == "trials"
    assert any(isinstance(e, Notice) and "SIGKILL" in e.text for e in events)
    assert [t.attempts for t in rows()] == [1, 2]
    assert [(t.number, t.value, t.metrics) for t in rows()] == [
        (t.number, t.value, t.metrics) for t in rows(url=calm.url)[:2]
    ]


def test_a_trial_that_kills_every_worker_fails_with_every_error_kept(
    study_file: StudyFile,
) -> None:
    current: list[Dispatcher] = []
    reached: list[float] = []  # by attempt

    def kill(event: Event) -> None:
        if isinstance(event, TrialStarted):
            reached.append(0.0)
        if isinstance(event, RungReached):
            reached[-1] = max(reached[-1], event.progress)
            for worker in current[0].workers:
                if isinstance(worker, LocalWorker):
                    os.kill(worker.pid, signal.SIGKILL)

    path = study_file(resources={"max_attempts": 2}, budget={"trials": 5, "failures": 1})
    with pytest.raises(TrialError, match="trial 0 crashed: the worker was killed by SIGKILL"):
        start(path, notify=kill, on_dispatcher=current.append)
    (trial,) = rows()
    assert (trial.state, trial.reason) == ("FAIL", "crashed")
    # The first attempt reached a rung; two after it, or after one that came to the next before its
    # worker was killed, no further one.
    further = reached.index(max(reached)) + 1
    assert trial.attempts == further + 2 == len(reached)
    assert trial.error is not None and trial.error.count("SIGKILL") == trial.attempts


def test_a_stopped_study_goes_on_from_the_checkpoint(calm: Calm, study_file: StudyFile) -> None:
    current: list[Dispatcher] = []

    def stop_in_trial_1(event: Event) -> None:
        if isinstance(event, RungReached) and event.number == 1 and event.progress == 25:
            current[0].stop()

    path = study_file(budget={"trials": 2})
    ended, _ = start(path, notify=stop_in_trial_1, on_dispatcher=current.append)
    assert ended.why == "stopped"
    assert [t.state for t in rows()] == ["COMPLETE", "RUNNING"]
    again, events = start(path)
    assert again == Ended("trials", continued=True)
    first = next(e for e in events if isinstance(e, RungReached))
    assert first.number == 1
    assert first.progress > 25  # how far it had trained on meanwhile is a matter of time
    assert [(t.number, t.value) for t in rows()] == [
        (t.number, t.value) for t in rows(url=calm.url)[:2]
    ]


def test_bad_trials_are_pruned_but_never_the_default_one(study_file: StudyFile) -> None:
    path = study_file(
        training={"learning_rate": 1e-8, "epochs": 4},
        space={"learning_rate": [1e-8, 3e-3, 1e-7, 1e-6]},
        sampler={"name": "grid", "enqueue": [{"learning_rate": 3e-3}]},
        objective={"metric": "loss", "rungs": 4},
        pruner={"name": "asha", "first": 50, "reduction": 2, "startup_trials": 0},
        budget=None,
    )
    start(path)
    trials = rows()
    assert trials[0].reason == "completed"
    pruned = [t for t in trials if t.reason == "pruned"]
    assert [t.number for t in pruned] == [2, 3]
    assert all(t.state == "PRUNED" and t.checkpoint is None for t in pruned)


def test_a_cross_validated_study_is_pruned_between_folds_and_exported(
    study_file: StudyFile, tmp_path: Path
) -> None:
    path = study_file(
        data={"folds": 5, "classes": [0, 1], "validation_limit": None, "train_limit": 200},
        training={"learning_rate": 0.02},
        space={"learning_rate": [0.02, 1e-6]},
        sampler={"name": "grid"},
        pruner={"name": "wilcoxon"},
        budget=None,
    )
    start(path)
    good, bad = rows()
    assert (good.reason, bad.reason) == ("completed", "pruned")
    # Of four pairs that are all worse the test's p is 1/16, of three 1/8.
    assert bad.note == "after 4 of 5 folds"
    found = good.flags["folds"]
    assert good.value == pytest.approx(sum(found["values"]) / 5)
    assert "faults" not in good.flags  # folds are no curve
    db = Database.open("sqlite:///t.db", create=False)
    try:
        rungs = reads.evaluation_rows(db, "tiny", good.number)
    finally:
        db.dispose()
    assert [rung.progress for rung in rungs] == [20, 40, 60, 80, 100]
    assert [rung.metrics["accuracy"] for rung in rungs] == found["values"]
    study = sft_tune.open_study("tiny", storage="sqlite:///t.db")
    exported = json.loads((study.export(tmp_path / "out") / "export.json").read_text())
    assert exported["validation"] == pytest.approx(found["metrics"])
    with pytest.raises(UserError, match=r"cross-validated \(data.folds\)"):
        study.export(tmp_path / "soup", soup=True)


def test_a_budget_that_changes_how_trials_are_chosen_says_so(
    study_file: StudyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float] = []

    def sampler(spec: Any, ordinal: int, fixed_cost: float, *rest: Any) -> Any:
        drawn.append(fixed_cost)
        return make_sampler(spec, ordinal, fixed_cost, *rest)

    monkeypatch.setattr(searcher, "make_sampler", sampler)
    search = {"sampler": {"name": "tpe"}, "objective": {"rungs": 4}}
    start(study_file(**search, budget={"trials": 1}))
    _, events = start(study_file(**search, budget={"trials": 2, "target": 1.0}))
    assert [e.text for e in events if isinstance(e, Notice)][:1] == [WEIGHED]
    _, events = start(study_file(**search, budget={"trials": 3}))
    assert [e.text for e in events if isinstance(e, Notice)][:1] == [NOT_WEIGHED]
    # Four evaluations, of the study's own examples.
    db = Database.open("sqlite:///t.db", create=False)
    examples = find_study(db, "tiny").facts["examples"]
    db.dispose()
    assert len(drawn) == 3
    assert drawn == pytest.approx([4 * examples["validation"] / (3 * examples["train"])] * 3)


def test_what_a_step_of_each_model_takes_is_known_to_the_search(study_file: StudyFile) -> None:
    models = ["builtin:convnet", "torchvision:resnet18"]
    path = study_file(
        model={"name": models[0], "weights": "none"},
        space={"model.name": models, "learning_rate": [1e-3, 3e-3]},
        sampler={"name": "tpe"},
        budget={"trials": 1, "target": 1.0},
    )
    start(path)
    db = Database.open("sqlite:///t.db", create=False)
    try:
        costs = find_study(db, "tiny").facts["costs"]
    finally:
        db.dispose()
    assert costs[models[0]] == 1.0
    # The larger one has 11 million weights in place of 56,000.
    assert costs[models[1]] in (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


def test_every_model_is_checked_with_each_of_its_weights(study_file: StudyFile) -> None:
    models, weights = ["torchvision:resnet18", "torchvision:resnet50"], ["none", "DEFAULT"]
    path = study_file(
        model={"name": models[0], "weights": "none"},
        space={"model.name": models, "model.weights": weights},
    )
    checked = [one.model for one in configs_to_check(load_study(path).spec)]
    assert [(one.name, one.weights) for one in checked] == list(product(models, weights))
