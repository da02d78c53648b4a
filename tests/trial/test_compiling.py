"""torch.compile: names stay, numbers stay, a failure is told, and auto compiles what repays it."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import aot_eager

from sft_tune.trial import checkpoint, compiling
from sft_tune.trial.data import prepare
from sft_tune.trial.loop import run_trial
from sft_tune.trial.outcome import Outcome
from sft_tune.trial.step import rehearse
from sft_tune.trial.trainee import set_up


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Trace the graphs of both passes, but run them as they are: no C++ compiler, hardly a wait."""
    if "slow" not in request.keywords:
        quick = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", quick)
    torch._dynamo.reset()


def trained(runner: Any, config: Any, asked: Any, **options: Any) -> Outcome:
    settings: dict[str, Any] = {
        "report": lambda rung: runner.evaluations.append(rung) or True,
        "should_stop": lambda: False,
        "checkpoint_seconds": 0.0,
        **options,
    }
    return run_trial(
        config,
        runner.paths,
        device="cpu",
        cache=runner.cache,
        evaluation_batch_size=16,
        compiled=asked,
        **settings,
    )


def test_a_compiled_trial_has_the_names_and_numbers_of_another_and_resumes(
    digits: Any, new_runner: Any
) -> None:
    config = digits()
    plain, whole, broken = (new_runner(name) for name in ("plain", "whole", "broken"))
    trained(plain, config, False)
    outcome = trained(whole, config, True)
    assert outcome.reason == "completed" and "; a step took" not in outcome.note
    assert outcome.note.startswith("compiled in ")
    assert set(whole.best()[0]) == set(plain.best()[0])
    for mine, others in zip(whole.evaluations, plain.evaluations, strict=True):
        assert mine.metrics["loss"] == pytest.approx(others.metrics["loss"], rel=1e-3)
    left = iter(range(4))
    trained(broken, config, True, should_stop=lambda: next(left, None) is None)
    assert checkpoint.read(broken.paths.resume)[1]["compiled"] is True
    # auto keeps to what the trial began with, so that its numbers stay the same.
    assert trained(broken, config, "auto").resumed_from == 4
    assert broken.best()[0] == whole.best()[0]


def test_a_rehearsal_leaves_no_trace(digits: Any, runner: Any) -> None:
    config = digits()
    data = prepare(config.task, config.data, config.model, cache=runner.cache)
    trainee = set_up(config, data, torch.device("cpu"))
    trainee.set_training_mode()
    before = {k: t.clone() for k, t in trainee.model.module.state_dict().items()}
    state = torch.get_rng_state()
    rehearse(trainee, 0)
    assert all(torch.equal(t, before[k]) for k, t in trainee.model.module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in trainee.model.module.parameters())


def test_a_failure_is_told_and_the_trial_goes_on(
    digits: Any, new_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    plain, failing = new_runner("plain"), new_runner("failing")
    trained(plain, digits(), False)
    outcome = trained(failing, digits(), True)
    assert outcome.reason == "completed" and "not compiled any more: " in outcome.note
    assert "no compiler here" in outcome.note
    assert failing.best()[0] == plain.best()[0]
    (record,) = (failing.cache / compiling.FOLDER).glob("*.json")
    assert json.loads(record.read_text())["failed"] is True


def test_a_step_whose_compiled_pass_fails_is_done_again_without(
    digits: Any, new_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the backward pass, of the fourth step after the four that are taken back."""
    calls = itertools.count(1)

    def backward(graph: Any, inputs: Any) -> Any:
        def run(*given: Any) -> Any:
            if next(calls) == 8:
                raise RuntimeError("no more of this")
            return graph(*given)

        return make_boxed_func(run)

    backend = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph), bw_compiler=backward
    )
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    plain, failing = new_runner("plain"), new_runner("failing")
    trained(plain, digits(), False)
    outcome = trained(failing, digits(), True)
    assert outcome.reason == "completed" and next(calls) == 9
    first, second = outcome.note.split("; not ")
    assert first.startswith("compiled in ")
    assert second == "compiled any more: no more of this"
    for mine, others in zip(failing.evaluations, plain.evaluations, strict=True):
        assert mine.metrics["loss"] == pytest.approx(others.metrics["loss"], rel=1e-3)


def test_where_only_the_head_is_trained_nothing_is_compiled_nor_remembered(
    digits: Any, runner: Any
) -> None:
    outcome = trained(runner, digits(training={"freeze": "backbone"}), True)
    assert not outcome.flags.get("cached_features")  # what is augmented is not kept
    assert outcome.note == (
        "the frozen backbone is run in every step, because of training.augment (flip_crop); "
        "not compiled: only the head is trained"
    )
    assert not (runner.cache / compiling.FOLDER).exists()


def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list that every graph comes into that is compiled from now on."""
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    return graphs


@pytest.mark.parametrize("freeze", ["head_first", "gradual"])
def test_what_is_unfrozen_later_is_compiled_for_the_steps_after(
    freeze: str, digits: Any, new_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = compiled_graphs(monkeypatch)
    config = digits(training={"freeze": freeze, "unfreeze_at": 0.6, "epochs": 2})
    plain, whole = new_runner("plain"), new_runner("whole")
    trained(plain, config, False)
    assert trained(whole, config, True).note.startswith("compiled in ")
    assert len(graphs) == 1
    # Unfrozen at step 7.2 of 12: the rungs at 3 and 6 are of the module itself.
    rungs, others = whole.numbers(), plain.numbers()
    assert [rungs[p] == others[p] for p in (25, 50)] == [True, True]
    for progress in (75, 100):
        loss = others[progress]["metrics"]["loss"]
        assert rungs[progress]["metrics"]["loss"] == pytest.approx(loss, rel=1e-3)


def test_auto_counts_the_steps_that_are_compiled(
    digits: Any, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 12 steps trains more than the head: it would have to save 2 seconds."""
    record = {"plain": 2.0, "compiled": 1.0, "seconds": 2.0, "again": 2.0}
    monkeypatch.setattr(compiling, "_read", lambda path: record)
    config = digits(training={"freeze": "head_first", "unfreeze_at": 0.9})
    assert trained(runner, config, "auto").note == ""


@pytest.mark.parametrize(
    ("record", "compiles"),
    [
        ({"plain": 2.0, "compiled": 1.0, "seconds": 59.0}, True),  # 12 steps save 12 seconds
        ({"plain": 2.0, "compiled": 1.0, "seconds": 61.0}, False),  # a fifth, from the disk
        ({"plain": 2.0, "compiled": 1.0, "seconds": 99.0, "again": 11.0}, True),
        ({"plain": 2.0, "compiled": 1.0, "seconds": 9.0, "again": 13.0}, False),
        ({"plain": 1.0, "compiled": 2.0, "seconds": 0.0}, False),
        ({"plain": 1.0, "failed": True}, False),
        ({"plain": "torn"}, False),  # nothing is known then, and the trial is short
        (None, False),
    ],
)
def test_auto_compiles_what_repays_it_by_what_is_remembered(
    record: Any, compiles: bool, digits: Any, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(compiling, "_read", lambda path: record if _whole(record) else None)
    monkeypatch.setattr(compiling, "_keep", lambda path, found: kept.append(found))
    trained(runner, digits(training={"epochs": 2}), "auto")
    assert any("compiled" in found for found in kept) is compiles


@pytest.mark.parametrize("fast", [True, False])
def test_a_trial_that_is_long_enough_finds_out_for_those_after_it(
    digits: Any, new_runner: Any, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """The clock of the measurements is set; what is compiled, kept and remembered is not."""
    monkeypatch.setattr(compiling, "LEAST_SECONDS", 12.0)
    plain = 2.0
    monkeypatch.setattr(
        compiling,
        "_seconds",
        lambda trainee, step: plain if trainee.model.compiled is None else 0.0 if fast else 4.0,
    )
    first, second, short = (new_runner(name) for name in ("first", "second", "short"))
    outcome = trained(first, digits(), "auto")  # 12 steps of 2 s
    told = "compiled in" if fast else "not compiled: a step took 4000 ms compiled, 2000 ms as"
    assert outcome.reason == "completed" and outcome.note.startswith(told)
    (record,) = (first.cache / compiling.FOLDER).glob("*.json")
    known = json.loads(record.read_text())
    assert (known["plain"], known["compiled"]) == (2.0, 0.0 if fast else 4.0)
    assert known["seconds"] > 0 or not fast
    # The next one knows: 12 steps save 24 s, and tracing took less.
    assert trained(second, digits(seed=9), "auto").note.startswith("compiled in") is fast
    # One of 3 steps, 6 s, where nothing is known of its batch size, does not find out.
    outcome = trained(short, digits(training={"batch_size": 16, "epochs": 1}), "auto")
    assert outcome.note == ""


def test_trials_that_are_too_short_find_out_together(
    digits: Any, new_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "LEAST_SECONDS", 60.0)
    monkeypatch.setattr(
        compiling, "_seconds", lambda trainee, step: 2.0 if trainee.model.compiled is None else 1.0
    )
    runners = [new_runner(str(i)) for i in range(5)]
    notes = [trained(each, digits(seed=i), "auto").note for i, each in enumerate(runners)]
    # 24 s each: the third reaches a minute. Those after it save 12 s, and what it took is kept.
    assert [bool(note) for note in notes] == [False, False, True, True, True]
    (record,) = (runners[0].cache / compiling.FOLDER).glob("*.json")
    assert set(json.loads(record.read_text())) == {"plain", "compiled", "seconds", "again"}


@pytest.mark.slow
def test_as_many_kinds_of_trials_as_there_are_are_compiled(
    digits: Any, new_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's own limit is 8 of one module in a process; each dropout is one."""
    graphs = compiled_graphs(monkeypatch)
    for i in range(10):
        before = len(graphs)
        config = digits(model={"dropout": 0.05 * i}, training={"epochs": 1}, objective={"rungs": 1})
        trained(new_runner(str(i)), config, True)
        assert len(graphs) > before


def _whole(record: Any) -> bool:
    return record is not None and record["plain"] != "torn"


@pytest.mark.slow
def test_the_compiler_of_this_machine_makes_the_same_numbers(digits: Any, new_runner: Any) -> None:
    plain, whole = new_runner("plain"), new_runner("whole")
    trained(plain, digits(), False)
    assert trained(whole, digits(), True).note.startswith("compiled in ")
    for mine, others in zip(whole.evaluations, plain.evaluations, strict=True):
        assert mine.metrics["loss"] == pytest.approx(others.metrics["loss"], rel=1e-3)
