"""The database side of a runner, with a death between any two of its writes. No training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from sqlalchemy import event

from sft_tune.errors import StorageError
from sft_tune.run.crew import Crew, Running
from sft_tune.run.desk import Desk
from sft_tune.run.engine import Worker
from sft_tune.run.ledger import Ledger
from sft_tune.run.messages import Message
from sft_tune.run.owner import LEASE_SECONDS
from sft_tune.run.placement import Placement
from sft_tune.run.searcher import Searcher
from sft_tune.spec.load import load_study
from sft_tune.spec.plan import make_plan
from sft_tune.store import claims, reads, studies
from sft_tune.store.claims import LeaseLostError
from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import open_optuna_storage
from sft_tune.store.records import StudyRecord, find_study
from sft_tune.store.standing import failed_in_a_row
from sft_tune.view.status import others_of

Open = Callable[..., "Runner"]


class Runner:
    """What one `start` holds of a study; a second one stands for a restart after its death."""

    def __init__(self, db: Database, path: Path, clock: Callable[[], float]) -> None:
        loaded = load_study(path)
        self.db = db
        self.spec = loaded.spec
        self.plan = make_plan(self.spec)
        self.record: StudyRecord = studies.register_study(
            db,
            self.spec,
            text=loaded.text,
            path=str(path),
            root=str(path.parent),
            versions={},
            facts=None,
            artifacts=str(path.parent / "runs"),
            now=clock(),
        )
        self.searcher = Searcher(self.spec, self.plan, open_optuna_storage(db))
        files = self.record.artifacts
        self.ledger = Ledger(
            db, self.record, self.spec, self.plan, self.searcher, files, clock=clock
        )

    def place(self) -> Placement:
        placement = self.ledger.next_placement()
        assert placement is not None
        return placement

    def reach(self, placement: Placement, evaluation: dict[str, Any]) -> None:
        (verdict,) = self.ledger.rungs([(placement, evaluation)])
        if isinstance(verdict, LeaseLostError):
            raise verdict

    def run(self, placement: Placement, value: float) -> None:
        """Let the trial reach two rungs and its end."""
        begun = self.ledger.begin(placement, "CPU")
        for progress in (50, 100):
            self.reach(begun, rung(progress, value))
        self.ledger.end(begun, outcome(value))


def rung(progress: int, value: float) -> dict[str, Any]:
    return {
        "progress": progress,
        "epoch": 1.0,
        "step": progress,
        "train_loss": 0.5,
        "metrics": {"loss": 0.5, "accuracy": value},
        "learning_rate": 1e-3,
        "gradient_norm": 1.0,
        "seconds": 1.0,
    }


def outcome(value: float, reason: str = "completed") -> dict[str, Any]:
    return {"reason": reason, "value": value, "metrics": {"accuracy": value}, "seconds": 1.0}


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def runner(study_file: Callable[..., Path], clock: Clock) -> Iterator[Open]:
    db = Database.open("sqlite:///t.db", create=True)

    def make(**changes: Any) -> Runner:
        return Runner(db, study_file(**changes), clock)

    yield make
    db.dispose()


def optuna_trials() -> list[optuna.trial.FrozenTrial]:
    study = optuna.load_study(study_name="tiny", storage="sqlite:///t.db")
    return study.get_trials()


def test_a_death_between_claim_and_trial_leaves_the_place_to_the_next(
    runner: Open, clock: Clock
) -> None:
    first = runner(budget={"trials": 2})
    dead = claims.claim_new(
        first.db, first.record.id, owner="dead", now=clock(), lease_seconds=60, limit=2
    )
    assert dead is not None
    clock.now += 61
    second = runner(budget={"trials": 2})
    for value in (0.5, 0.6):
        second.run(second.place(), value)
    assert second.ledger.next_placement() is None
    assert [t.number for t in optuna_trials()] == [0, 1]


def test_a_death_between_trial_and_link_leaves_the_trial_to_the_next(
    runner: Open, clock: Clock
) -> None:
    first = runner(budget={"trials": 1})
    dead = claims.claim_new(
        first.db, first.record.id, owner="dead", now=clock(), lease_seconds=60, limit=1
    )
    assert dead is not None
    opened = first.searcher.open(dead)
    clock.now += 61
    second = runner(budget={"trials": 1})
    placement = second.place()
    assert (placement.number, placement.params) == (opened.number, opened.params)
    second.run(placement, 0.5)
    assert [t.state.name for t in optuna_trials()] == ["COMPLETE"]


def test_a_death_between_the_end_and_the_tell_is_told_by_the_next(runner: Open) -> None:
    first = runner(budget={"trials": 1})
    begun = first.ledger.begin(first.place(), "CPU")
    claims.end(first.db, begun.claim, outcome(0.75), now=time.time())
    assert [t.state.name for t in optuna_trials()] == ["RUNNING"]
    second = runner(budget={"trials": 1})
    second.ledger.recover()
    (trial,) = optuna_trials()
    assert (trial.state.name, trial.value) == ("COMPLETE", 0.75)
    assert trial.user_attrs["sft:reason"] == "completed"
    assert second.ledger.next_placement() is None


def test_an_end_that_its_living_runner_tells_at_this_moment_is_told_once(
    runner: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = runner(budget={"trials": 1})
    begun = first.ledger.begin(first.place(), "CPU")
    ended = claims.end(first.db, begun.claim, outcome(0.75), now=time.time())
    assert ended.optuna_trial_id is not None
    known = ended.optuna_trial_id
    second = runner(budget={"trials": 1})
    look = second.searcher._storage.get_trial

    def looked_just_before(trial: int) -> optuna.trial.FrozenTrial:
        seen = look(trial)
        first.searcher.tell(known, ended.state, ended.value, {})
        return seen

    monkeypatch.setattr(second.searcher._storage, "get_trial", looked_just_before)
    second.ledger.recover()
    assert [(t.state.name, t.value) for t in optuna_trials()] == [("COMPLETE", 0.75)]


def test_a_death_between_the_tell_and_its_note_changes_nothing(runner: Open) -> None:
    first = runner(budget={"trials": 1})
    begun = first.ledger.begin(first.place(), "CPU")
    ended = claims.end(first.db, begun.claim, outcome(0.75), now=time.time())
    assert ended.optuna_trial_id is not None
    first.searcher.tell(ended.optuna_trial_id, ended.state, ended.value, {})
    second = runner(budget={"trials": 1})
    second.ledger.recover()
    assert [(t.state.name, t.value) for t in optuna_trials()] == [("COMPLETE", 0.75)]
    assert claims.untold(second.db, second.record.id) == []


def test_a_trial_that_is_running_goes_on_with_the_parameters_it_has(
    runner: Open, clock: Clock
) -> None:
    first = runner(budget={"trials": 2})
    first.run(first.place(), 0.5)
    lost = first.ledger.begin(first.place(), "CPU")
    first.reach(lost, rung(50, 0.4))
    clock.now += 61
    second = runner(budget={"trials": 2})
    again = second.place()
    assert (again.number, again.config) == (lost.number, lost.config)
    second.run(again, 0.6)
    row = reads.trial_rows(second.db, "tiny")[1]
    assert (row.attempts, row.value, row.state) == (2, 0.6, "COMPLETE")


@pytest.mark.parametrize(
    ("reason", "state"),
    [("diverged", "PRUNED"), ("out_of_memory", "PRUNED"), ("crashed", "FAIL")],
)
def test_samplers_learn_from_trials_that_diverge_and_not_from_crashes(
    runner: Open, reason: str, state: str
) -> None:
    study = runner(budget={"trials": 1})
    begun = study.ledger.begin(study.place(), "CPU")
    study.ledger.end(begun, {"reason": reason, "note": "why", "seconds": 1.0})
    (trial,) = optuna_trials()
    assert trial.state.name == state
    assert trial.user_attrs["sft:note"] == "why"


def test_a_pruned_configuration_is_not_trained_again_either(runner: Open) -> None:
    study = runner(space={"schedule": ["linear", "cosine"]}, budget={"trials": 4})
    for _ in range(2):
        begun = study.ledger.begin(study.place(), "CPU")
        study.reach(begun, rung(50, 0.3))
        study.ledger.end(begun, outcome(0.3, "pruned"))
    for _ in range(2):
        repeated = study.ledger.repeated(study.place())
        assert repeated is not None and repeated.reason == "duplicate"
    assert [t.state.name for t in optuna_trials()] == ["PRUNED"] * 4
    assert [t.value for t in optuna_trials()] == [0.3] * 4


def test_a_worker_that_died_before_it_heard_that_it_is_pruned_is_told_again(runner: Open) -> None:
    pruner = {"name": "asha", "first": 50, "reduction": 2, "startup_trials": 0}
    study = runner(pruner=pruner)
    for value in (0.9, 0.8, 0.7):
        study.run(study.place(), value)
    begun = study.ledger.begin(study.place(), "CPU")
    for _ in range(2):
        assert study.ledger.rungs([(begun, rung(50, 0.1))]) == [False]


def test_a_trial_whose_runner_died_before_its_worker_heard_is_pruned_by_the_next_at_the_same_rung(
    runner: Open, clock: Clock
) -> None:
    pruner = {"name": "asha", "first": 50, "reduction": 2, "startup_trials": 0}
    dead = runner(pruner=pruner)
    for value in (0.9, 0.8, 0.7):
        dead.run(dead.place(), value)
    begun = dead.ledger.begin(dead.place(), "CPU")
    assert dead.ledger.rungs([(begun, rung(25, 0.1))]) == [True]
    assert dead.ledger.rungs([(begun, rung(50, 0.1))]) == [False]
    clock.now += 61
    following = runner(pruner=pruner)
    again = following.ledger.begin(following.place(), "CPU")
    assert again.number == begun.number
    # From its last checkpoint, which may lie some rungs before.
    assert following.ledger.rungs([(again, rung(25, 0.1))]) == [True]
    assert following.ledger.rungs([(again, rung(50, 0.1))]) == [False]


class Elsewhere(Runner):
    """A runner of another machine, whose clock may go otherwise."""

    def __init__(self, db: Database, path: Path, clock: Clock) -> None:
        super().__init__(db, path, clock)
        self.ledger._owner = "elsewhere:1:1.0"


@pytest.mark.parametrize("whose", ["holder", "other"])
@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_jumps_doubles_no_trial_and_loses_none(
    whose: str, jump: float, runner: Open, study_file: Callable[..., Path]
) -> None:
    budget = {"trials": 2}
    first = runner(budget=budget)
    here, there = Clock(), Clock()
    first.ledger._clock = here
    second = Elsewhere(first.db, study_file(budget=budget), there)
    held = first.ledger.begin(first.place(), "CPU")
    clock = here if whose == "holder" else there
    clock.now += jump
    still_held = held.claim.id in first.ledger.heartbeat()
    assert still_held
    other = second.place()
    # A lease that looks expired to the other is taken over, and its holder finds that out.
    taken = jump < 0 if whose == "holder" else jump > 0
    assert (other.number == held.number) == taken
    if taken:
        other = second.ledger.begin(other, "CPU")
        assert first.ledger.heartbeat() == set()
        for late in (
            lambda: first.reach(held, rung(50, 0.1)),
            lambda: first.ledger.end(held, outcome(0.1)),
        ):
            with pytest.raises(LeaseLostError):
                late()
    else:
        first.run(held, 0.5)
    second.run(other, 0.5)
    clock.now -= jump
    while (placement := first.ledger.next_placement()) is not None:
        first.run(placement, 0.5)
    assert second.ledger.next_placement() is None
    assert [(t.number, t.state.name, t.value) for t in optuna_trials()] == [
        (0, "COMPLETE", 0.5),
        (1, "COMPLETE", 0.5),
    ]
    rows = reads.trial_rows(first.db, "tiny")
    assert [(row.number, row.lease_owner) for row in rows] == [(0, None), (1, None)]
    # A jump is no time that the study ran: what is counted at once is at most a lease.
    counted = find_study(first.db, "tiny").active_seconds
    assert 0.0 <= counted <= 5 * LEASE_SECONDS


def active(study: Runner) -> float:
    return find_study(study.db, "tiny").active_seconds


def test_a_second_runner_takes_no_time_from_the_study(
    runner: Open, clock: Clock, study_file: Callable[..., Path]
) -> None:
    first = runner(budget={"trials": 2})
    first.ledger.recover()
    held = first.ledger.begin(first.place(), "CPU")
    clock.now += 12.0
    second = Elsewhere(first.db, study_file(budget={"trials": 2}), clock)
    second.ledger.recover()
    clock.now += 5.0
    first.ledger.end(held, outcome(0.5))
    assert active(first) == pytest.approx(17.0)
    # What a runner takes to leave after the last trial has ended is no time of the study.
    second.run(second.place(), 0.5)
    clock.now += 4.0
    for one in (first, second):
        one.ledger.close("trials")
    assert active(first) == pytest.approx(17.0)


def test_the_time_before_a_runner_that_is_alone_counts_for_nothing(
    runner: Open, clock: Clock
) -> None:
    first = runner(budget={"trials": 1})
    first.ledger.recover()
    held = first.ledger.begin(first.place(), "CPU")
    clock.now += 10.0
    first.ledger.give_back(held)
    clock.now += 30.0
    again = runner(budget={"trials": 1})
    again.ledger.recover()
    clock.now += 2.0
    again.run(again.place(), 0.5)
    assert active(again) == pytest.approx(12.0)


def test_a_pause_is_no_time_of_the_study(runner: Open, clock: Clock) -> None:
    study = runner(budget={"trials": 1})
    study.ledger.recover()
    desk = Desk(study.spec, study.ledger, lambda event: None)
    held = study.ledger.begin(study.place(), "CPU")
    clock.now += 10.0
    study.ledger.want("paused")
    desk.refresh()
    study.ledger.give_back(held)
    clock.now += 30.0
    study.ledger.want(None)
    desk.refresh()
    clock.now += 2.0
    study.run(study.place(), 0.5)
    assert active(study) == pytest.approx(12.0)


def test_what_leads_is_the_studys_best_and_its_target_ends_every_runner(
    runner: Open, clock: Clock, study_file: Callable[..., Path]
) -> None:
    budget = {"trials": 8, "target": 0.9}
    first = runner(budget=budget)
    second = Elsewhere(first.db, study_file(budget=budget), clock)
    leads = []
    for who, value in ((first, 0.7), (second, 0.5), (second, 0.8), (first, 0.75), (first, 0.85)):
        begun = who.ledger.begin(who.place(), "CPU")
        leads.append(who.ledger.end(begun, outcome(value)).leads)
    assert leads == [True, False, True, False, True]
    assert second.ledger.exhausted() is None
    first.run(first.place(), 0.95)
    assert second.ledger.exhausted() == "target"
    assert second.ledger.next_placement() is None


def test_so_many_failures_in_a_row_as_end_a_study_are_seen_in_its_rows(runner: Open) -> None:
    study = runner(budget={"trials": 8, "failures": 2})
    seen = []
    for reason in ("crashed", "completed", "crashed", "stalled", "diverged"):
        begun = study.ledger.begin(study.place(), "CPU")
        study.ledger.end(begun, outcome(0.5, reason))
        seen.append(failed_in_a_row(study.db, "tiny"))
    assert seen == [None, None, None, 2, None]


def test_a_watcher_hears_of_the_trials_of_other_runners(
    runner: Open, clock: Clock, study_file: Callable[..., Path]
) -> None:
    changes: dict[str, Any] = {"budget": {"trials": 8}}
    first = runner(**changes)
    second = Elsewhere(first.db, study_file(**changes), clock)
    first.run(first.place(), 0.5)
    held = second.place()
    others = others_of(first.db, "tiny", reads.trial_rows(first.db, "tiny"))
    begun = first.place()
    first.run(begun, 0.6)
    assert others(begun.number) == []
    second.run(held, 0.7)
    second.run(second.place(), 0.8)
    assert [(past.number, past.value) for past in others(begun.number)] == [(1, 0.7), (3, 0.8)]
    assert others(begun.number) == []


def statements_of_a_trial(study: Runner, value: float) -> int:
    count = 0

    def tick(*_: Any) -> None:
        nonlocal count
        count += 1

    engines = [study.db.engine, open_optuna_storage(study.db).engine]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", tick)
    study.run(study.place(), value)
    for engine in engines:
        event.remove(engine, "before_cursor_execute", tick)
    return count


def test_a_trial_of_a_large_grid_costs_what_one_of_a_small_grid_costs(runner: Open) -> None:
    counts = {}
    for name, sizes in {"small": (5, 10), "large": (50, 100)}.items():
        space = {
            "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True, "points": sizes[0]},
            "batch_size": list(range(1, sizes[1] + 1)),
        }
        training = {"batch_size": 1, "learning_rate": 1e-5}
        study = runner(
            name=name, space=space, training=training, sampler={"name": "grid"}, budget=None
        )
        assert study.plan.limit(study.spec.budget) == sizes[0] * sizes[1]
        counts[name] = [statements_of_a_trial(study, 0.5 + i / 100) for i in range(4)]
    assert counts["large"] == counts["small"]


@pytest.mark.parametrize("rungs", [0, 1])
def test_a_stopped_trial_teaches_the_sampler_by_the_rungs_that_are_on_record(
    runner: Open, clock: Clock, rungs: int
) -> None:
    first = runner()
    begun = first.ledger.begin(first.place(), "CPU")
    for progress in (50, 100)[:rungs]:
        first.reach(begun, rung(progress, 0.7))
    clock.now += 61
    taken = runner().place()  # its worker is gone, and says nothing of a value
    first.ledger.end(taken, {"reason": "stopped", "state": "FAIL", "note": "", "seconds": 0.0})
    (trial,) = optuna_trials()
    assert trial.state.name == ("PRUNED" if rungs else "FAIL")


def test_where_the_database_is_away_no_worker_is_left_behind() -> None:
    class Fake(Worker):
        def __init__(self) -> None:
            self.told: list[str] = []

        def send(self, message: Message) -> None:
            self.told.append(message["do"])

        def close(self, patience: float = 10.0) -> None:
            self.told.append("close")

        def kill(self) -> None:
            self.told.append("kill")

    class Away:
        def give_back(self, placement: Placement) -> None:
            raise StorageError("no server answers")

    busy, idle = [Fake(), Fake()], Fake()
    crew = Crew(None, [], None, [idle])  # type: ignore[arg-type]
    desk: Any = SimpleNamespace(ledger=Away())
    crew.busy = {worker: Running(desk, None, 0.0) for worker in busy}  # type: ignore[arg-type]
    with pytest.raises(StorageError):
        crew.close()
    assert [worker.told for worker in (*busy, idle)] == [["kill"], ["kill"], ["quit", "close"]]
