"""Stacked trials: each has the numbers and files that it has alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_tune.errors import TrialError
from sft_tune.spec.config import TrialConfig
from sft_tune.trial import monitors
from sft_tune.trial.outcome import Evaluation
from sft_tune.trial.paths import TrialPaths
from sft_tune.trial.stack import room, rows, together, trials
from sft_tune.trial.stack.common import Common
from sft_tune.trial.stack.shared import NotStackableError
from tests.trial.stack.driver import ROUNDING, Driver, alone, go_on, same, same_files

# One row a trial: every optimizer, schedule and kind of clipping, different lengths and seeds.
TABLE: list[dict[str, Any]] = [
    {},
    {"optimizer": "adam", "weight_decay": 0.1, "schedule": "cosine", "epochs": 3, "beta1": 0.5},
    {"optimizer": "sgd", "schedule": "one_cycle", "clip_norm": 0.1, "learning_rate": 0.1},
    {"optimizer": "sgd", "nesterov": True, "momentum": 0.5, "clip_norm": None, "epochs": 1},
    {"optimizer": "sgd", "momentum": 0.0, "schedule": "inverse_sqrt", "clip_value": 0.01},
    {"schedule": "step", "decay_all": True, "l1": 0.01, "label_smoothing": 0.2, "warmup": 0.5},
    {"schedule": "exponential", "head_multiplier": 5.0, "epsilon": 1e-3, "clip_value": 0.05},
    {"optimizer": "adam", "schedule": "polynomial", "beta2": 0.9, "l1": 0.1, "decay_all": True},
]


@pytest.fixture
def heads(sentences: Callable[..., TrialConfig]) -> Callable[..., TrialConfig]:
    """Make configurations of heads with dropout on a frozen encoder: 5 steps of 8, the last 7."""

    def configure(seed: int = 5, model: dict[str, Any] | None = None, **training: Any) -> Any:
        return sentences(
            seed=seed,
            data={"train_limit": 39},
            model={"dropout": 0.3, **(model or {})},
            training={"freeze": "backbone", "learning_rate": 0.02, **training},
        )

    return configure


def test_early_rungs_on_a_part_are_what_they_are_alone(
    heads: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    driver, configs = Driver(tmp_path, go_on), {}
    for seed in range(4):
        config = heads(seed=seed, learning_rate=0.5, schedule="constant", epochs=3)
        objective = config.objective.model_copy(update={"evaluate": 6})
        configs[f"t{seed}"] = config.model_copy(update={"objective": objective})
    for name, config in configs.items():
        driver.enter(name, config)
    driver.work()
    for name, config in configs.items():
        outcome, expected = alone(config, tmp_path / f"alone-{name}")
        same(driver.seen[name], expected)
        assert [e.examples for e in driver.seen[name]] == [6, 6, 6, 6, None]
        assert driver.outcomes[name].best_progress == outcome.best_progress
        assert driver.outcomes[name].metrics == pytest.approx(outcome.metrics, **ROUNDING)
        same_files(tmp_path / name, tmp_path / f"alone-{name}")
    assert any(outcome.best_progress != 100 for outcome in driver.outcomes.values())


def test_each_trial_of_a_stack_is_what_it_is_alone(
    heads: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    configs = {f"t{i}": heads(seed=i, **training) for i, training in enumerate(TABLE)}
    driver = Driver(tmp_path, go_on)
    late = configs.pop("t7")
    for name, config in configs.items():
        driver.enter(name, config)
    driver.work(until=lambda: bool(driver.outcomes))
    driver.enter("t7", late)  # when another has left
    driver.work()
    for name, config in {**configs, "t7": late}.items():
        outcome, expected = alone(config, tmp_path / f"alone-{name}")
        same(driver.seen[name], expected)
        stacked = driver.outcomes[name]
        assert (stacked.reason, stacked.steps, stacked.best_progress, stacked.flags) == (
            *("completed", outcome.steps, outcome.best_progress),
            outcome.flags,
        )
        assert stacked.seconds > 0 and stacked.samples_per_second > 0
        same_files(tmp_path / name, tmp_path / f"alone-{name}")


def test_trials_of_any_batch_size_stack(
    heads: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "AHEAD", 3)
    # Of 39 examples: 9 of 4 and one of 3, 4 of 8 and one of 7, 2 of 16 and one of 7, one of all,
    # one of 19 and one of 20.
    sizes = (4, 16, 64, 8, 4, 16, 8, 19)
    configs = {
        f"t{i}": heads(seed=i, batch_size=size, **training)
        for i, (size, training) in enumerate(zip(sizes, TABLE, strict=True))
    }
    driver = Driver(tmp_path, lambda name, rung: name != "t1" or rung.progress < 40)
    late = {name: configs.pop(name) for name in ("t0", "t6")}
    for name, config in configs.items():
        driver.enter(name, config)
    driver.work(until=lambda: bool(driver.outcomes))
    for name, config in late.items():  # when another has left
        driver.enter(name, config)
    driver.work()
    for name, config in {**configs, **late}.items():
        _, expected = alone(config, tmp_path / f"alone-{name}")
        if name == "t1":
            assert driver.outcomes[name].reason == "pruned"
            same(driver.seen[name], expected[:2])
        else:
            same(driver.seen[name], expected)
            same_files(tmp_path / name, tmp_path / f"alone-{name}")


@pytest.mark.parametrize(
    "place", [(Common, "trainee"), (rows, "_multipliers"), (Common, "passes"), (trials, "Together")]
)
def test_memory_that_runs_out_as_a_trial_enters_spoils_no_other(
    heads: Callable[..., TrialConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[Any, str],
) -> None:
    configs = {"one": heads(seed=1), "two": heads(seed=2, batch_size=4)}
    driver = Driver(tmp_path, go_on)
    for name, config in configs.items():
        driver.enter(name, config)
        driver.work(until=lambda name=name: name in driver.seen)
    with monkeypatch.context() as patch:
        patch.setattr(*place, lambda *_: torch.empty(2**60))
        with pytest.raises(RuntimeError, match="allocate memory"):
            driver.enter("three", heads(seed=3))
    assert len(driver.stack) == 2
    rungs = sum(map(len, driver.seen.values()))
    driver.work(until=lambda: sum(map(len, driver.seen.values())) > rungs)
    driver.enter("four", heads(seed=4))
    driver.work()
    assert driver.outcomes.keys() == {"one", "two", "four"}
    for name, config in {**configs, "four": heads(seed=4)}.items():
        same(driver.seen[name], alone(config, tmp_path / f"alone-{name}")[1])
        same_files(tmp_path / name, tmp_path / f"alone-{name}")


def test_a_trial_for_which_there_is_no_room_trains_alone(
    heads: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path, go_on)
    driver.enter("one", heads(seed=1))
    monkeypatch.setattr(room, "SHARE", 1e-9)
    with pytest.raises(MemoryError, match="no room"):
        driver.enter("two", heads(seed=2))
    driver.work()
    assert driver.outcomes["one"].reason == "completed"


def test_pruned_and_diverged_trials_leave_and_the_others_go_on(
    heads: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    def verdict(name: str, evaluation: Evaluation) -> bool:
        return name != "bad" or evaluation.progress < 40

    driver = Driver(tmp_path, verdict)
    good = heads(seed=1)
    for name, config in {
        "good": good,
        "bad": heads(seed=2),
        "wild": heads(seed=3, optimizer="sgd", learning_rate=1e30, clip_norm=None, l1=1.0),
        "idle": heads(seed=4, learning_rate=1e-12, patience=1, min_change=0.1),
    }.items():
        driver.enter(name, config)
    driver.work()
    reasons = {name: outcome.reason for name, outcome in driver.outcomes.items()}
    assert reasons == {
        **{"good": "completed", "bad": "pruned"},
        **{"wild": "diverged", "idle": "early_stopped"},
    }
    assert [e.progress for e in driver.seen["bad"]] == [20, 40]
    assert driver.outcomes["bad"].note == "at 40 % of its horizon"
    same(driver.seen["good"], alone(good, tmp_path / "alone")[1])


def test_numbers_that_stay_on_the_device_are_looked_at_now_and_then(
    heads: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitors, "CHECK_EVERY", {"cpu": 4})
    configs = {
        "good": heads(seed=1, batch_size=4),
        "wild": heads(seed=3, optimizer="sgd", learning_rate=1e30, clip_norm=None, l1=1.0),
    }
    ended = {}
    for way in ("read", "kept"):
        driver = Driver(tmp_path / way, go_on)
        for name, config in configs.items():
            driver.enter(name, config)
        driver.work()
        ended[way] = driver
        monkeypatch.setattr(
            together.Together, "_numbers", lambda _, found: [list(row) for row in found.unbind()]
        )
    same(ended["kept"].seen["good"], ended["read"].seen["good"])
    read, kept = (driver.outcomes["wild"] for driver in ended.values())
    assert (kept.reason, kept.note) == (read.reason, read.note)
    assert kept.reason == "diverged" and "loss became nan at step" in kept.note


@pytest.mark.parametrize("how", ["stacked", "alone"])
def test_a_trial_that_was_saved_in_a_stack_goes_on_stacked_or_alone(
    heads: Callable[..., TrialConfig], tmp_path: Path, how: str
) -> None:
    configs = {"one": heads(seed=1, optimizer="sgd"), "two": heads(seed=2, epochs=3)}
    driver = Driver(tmp_path, go_on)
    for name, config in configs.items():
        driver.enter(name, config)
    driver.work(until=lambda: len(driver.seen.get("two", [])) == 3)
    for name in configs:
        driver.stack.stop(name)
    driver.work()
    assert {outcome.reason for outcome in driver.outcomes.values()} == {"stopped"}
    again = Driver(tmp_path, go_on)
    for name, config in configs.items():
        if how == "stacked":
            again.enter(name, config)
        else:
            again.outcomes[name], again.seen[name] = alone(config, tmp_path / name)
    again.work()
    for name, config in configs.items():
        assert again.outcomes[name].resumed_from > 0
        expected = alone(config, tmp_path / f"whole-{name}")[1]
        same(driver.seen[name] + again.seen[name], expected)
        same_files(tmp_path / name, tmp_path / f"whole-{name}")


def test_a_trial_that_was_killed_alone_goes_on_in_a_stack(
    heads: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    class KilledError(Exception):
        pass

    def kill(name: str, evaluation: Evaluation) -> bool:
        if evaluation.progress == 60:
            raise KilledError
        return True

    config = heads(seed=1)
    with pytest.raises(KilledError):
        alone(config, tmp_path / "one", kill)
    driver = Driver(tmp_path, go_on)
    driver.enter("one", config)
    driver.enter("two", heads(seed=2))
    driver.work()
    assert driver.outcomes["one"].resumed_from == 4
    same(driver.seen["one"], alone(config, tmp_path / "whole")[1][2:])


@pytest.mark.parametrize("answer", [True, False])
def test_a_trial_trains_on_to_its_next_rung_until_the_verdict_is_there(
    heads: Callable[..., TrialConfig], tmp_path: Path, answer: bool
) -> None:
    config = heads(seed=1, epochs=3)
    driver = Driver(tmp_path, lambda name, rung: None if name == "late" else True)
    driver.enter("late", config)
    driver.enter("other", heads(seed=2, epochs=3))
    driver.work(until=lambda: bool(driver.outcomes))
    assert [rung.progress for rung in driver.seen["late"]] == [20]
    assert not driver.stack.trains
    for _ in range(5):
        driver.stack.answer("late", answer)
        driver.work(until=lambda: not driver.stack.trains)
    driver.work()
    outcome, expected = alone(config, tmp_path / "alone", lambda *_: answer)
    assert (driver.outcomes["late"].reason, driver.outcomes["late"].steps) == (
        outcome.reason,
        outcome.steps,
    )
    same(driver.seen["late"], expected)


def test_weights_are_written_of_those_alone_that_would_stay(
    heads: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    driver = Driver(tmp_path, lambda name, rung: name != "pruned", keep=1)
    rates = {"still": 1e-9, "fast": 0.02, "pruned": 1e-9, "again": 1e-9}
    for name, rate in rates.items():  # one after another
        driver.enter(name, heads(seed=3, learning_rate=rate, epochs=8))
        driver.work()
    values = {name: outcome.value or 0.0 for name, outcome in driver.outcomes.items()}
    assert values["still"] != values["fast"]
    worse = {"fast"} if values["fast"] < values["still"] else {"again"}
    kept = {name for name, outcome in driver.outcomes.items() if outcome.checkpoint}
    assert kept == {name for name in values if TrialPaths(tmp_path / name).best.exists()}
    assert kept == values.keys() - worse - {"pruned"}


def test_a_trial_whose_weights_cannot_be_written_takes_no_other_with_it(
    heads: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    driver = Driver(tmp_path, go_on)
    driver.enter("one", heads(seed=1))
    driver.enter("two", heads(seed=2))
    TrialPaths(tmp_path / "one").best.mkdir()
    driver.work()
    assert isinstance(driver.errors["one"], TrialError)
    assert "free space" in str(driver.errors["one"])
    assert driver.outcomes["two"].reason == "completed"


def test_other_settings_are_trained_alone(
    heads: Callable[..., TrialConfig], tmp_path: Path
) -> None:
    driver = Driver(tmp_path, go_on)
    config = heads()
    # Its targets are no classes: there is no stack of such trials at all.
    data = config.data.model_copy(update={"multi_label": True})
    with pytest.raises(NotStackableError, match="not those of the stack"):
        driver.enter("first", config.model_copy(update={"data": data}))
    driver.enter("one", config)
    for other in ({"precision": "bf16"}, {"freeze": "none"}, {"optimizer": "lion"}):
        with pytest.raises(NotStackableError, match="not those of the stack"):
            driver.enter("other", heads(**other))
    driver.stack.drop("one")
    assert len(driver.stack) == 0


@pytest.mark.parametrize("kind", ["image", "text"])
def test_heads_of_real_models_stack(shared: Path, tmp_path: Path, kind: str) -> None:
    image = kind == "image"
    name = "cifar10" if image else "subjectivity"
    weights = str(shared / "models" / "resnet18-cifar5.safetensors")
    model = {"name": "torchvision:resnet18", "weights": weights}
    if not image:
        model = {"name": f"transformers:{shared / 'models' / 'minilm-l6'}"}
    configs = {
        f"t{seed}": TrialConfig.model_validate(
            {
                "task": f"{kind}-classification",
                "data": {"source": str(shared / "data" / name), "train_limit": 72}
                | {"validation_limit": 40}
                | ({} if image else {"max_length": 24}),
                "model": model,
                "training": {"epochs": 2, "batch_size": 16, "freeze": "backbone"},
                "objective": {"rungs": 2},
                "seed": seed,
            }
        )
        for seed in (3, 4)
    }
    driver = Driver(tmp_path, go_on)
    for each, config in configs.items():
        driver.enter(each, config)
    driver.work()
    for each, config in configs.items():
        same(driver.seen[each], alone(config, tmp_path / f"alone-{each}")[1])
        same_files(tmp_path / each, tmp_path / f"alone-{each}")
