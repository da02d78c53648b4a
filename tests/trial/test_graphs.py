"""CUDA graphs, as far as no GPU is needed: who may, which batches, what is believed, what fails."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from sft_tune.trial import compiling, graphs
from sft_tune.trial.loop import run_trial
from sft_tune.trial.outcome import Outcome

Graph = Callable[..., Any]


@dataclass
class Compiler:
    """Stands in for the compiler of a GPU's graphs: notes what it is asked, and runs `run`."""

    options: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    marks: int = 0
    run: Graph = lambda module, pixels: module(pixels)

    def compile(self, module: Any, **options: Any) -> Any:
        self.options.append(options)

        def call(pixels: torch.Tensor) -> Any:
            self.sizes.append(len(pixels))
            return self.run(module, pixels)

        return call

    def mark(self) -> None:
        self.marks += 1


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr(torch, "compile", found.compile)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", found.mark)
    return found


def trained(runner: Any, config: Any, asked: Any = True) -> Outcome:
    return run_trial(
        config,
        runner.paths,
        device="cpu",
        cache=runner.cache,
        report=lambda rung: runner.evaluations.append(rung) or True,
        should_stop=lambda: False,
        checkpoint_seconds=0.0,
        evaluation_batch_size=16,
        compiled=asked,
    )


def still(digits: Any, **training: Any) -> Any:
    """Make a configuration without chance: 6 steps, every third of 8 examples in place of 20."""
    settings = {"augment": "none", "batch_size": 20, "epochs": 2, **training}
    return digits(model={"dropout": 0.0}, training=settings)


def test_batches_of_the_first_shape_are_replayed_and_others_not(
    digits: Any, new_runner: Any, compiler: Compiler
) -> None:
    plain, whole = new_runner("plain"), new_runner("whole")
    trained(plain, still(digits), False)
    assert not compiler.options
    outcome = trained(whole, still(digits))
    assert outcome.reason == "completed" and outcome.note.startswith("compiled in ")
    assert compiler.options == [{"mode": "reduce-overhead", "dynamic": False}]
    # Taken back: 1, 3 that are timed, 2 that are compared; trained: 4.
    assert compiler.sizes == [20] * 10
    assert compiler.marks == 10
    assert whole.numbers() == plain.numbers()
    assert whole.best()[0] == plain.best()[0]


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"dropout": 0.2}},  # drawn where the model is
        {"training": {"freeze": "head_first"}},
        {"training": {"micro_batch": 4}},
        {"training": {"gradient_checkpointing": True}},
        {"training": {"r_drop": 1.0}},
    ],
)
def test_passes_that_cannot_be_replayed_are_compiled_as_ever(
    sections: dict[str, dict[str, Any]], digits: Any, runner: Any, compiler: Compiler
) -> None:
    settings = {"model": {"dropout": 0.0}, "training": {"augment": "none"}}
    config = digits(**{name: {**settings[name], **sections.get(name, {})} for name in settings})
    assert trained(runner, config).note.startswith("compiled in ")
    assert compiler.options == [{}]
    assert compiler.marks == 0


def test_texts_are_not_replayed(
    sentences: Any, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their batches are as long as their longest."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(graphs, "DEVICES", ("cpu",))
    monkeypatch.setattr(torch, "compile", lambda module, **o: asked.append(o) or module)
    assert trained(runner, sentences()).note.startswith("compiled in ")
    assert asked == [{}]


@pytest.mark.parametrize("stale", [True, False])
def test_what_has_other_numbers_is_not_believed(
    stale: bool, digits: Any, new_runner: Any, compiler: Compiler
) -> None:
    """A graph that keeps to the input that it was recorded with; one that is wrong by a tenth."""
    kept: list[torch.Tensor] = []

    def run(module: Any, pixels: torch.Tensor) -> Any:
        kept.append(pixels)
        return module(kept[0]) if stale else 1.1 * module(pixels)

    compiler.run = run
    plain, other = new_runner("plain"), new_runner("other")
    trained(plain, still(digits), False)
    outcome = trained(other, still(digits))
    assert outcome.note == "not compiled: loss and gradient would be others with CUDA graphs"
    assert other.best()[0] == plain.best()[0]
    assert len(kept) == 6  # no step went through it
    (record,) = (other.cache / compiling.FOLDER).glob("*.json")
    assert '"failed": true' in record.read_text()


@pytest.mark.parametrize("when", [1, 3, 8])
@pytest.mark.parametrize(
    "error", [RuntimeError("operation not permitted"), torch.OutOfMemoryError()]
)
def test_whatever_fails_the_trial_goes_on_without_and_with_whole_batches(
    when: int, error: Exception, digits: Any, new_runner: Any, compiler: Compiler
) -> None:
    """When it is recorded, when it is timed, in the second step that is trained."""
    calls = itertools.count(1)

    def run(module: Any, pixels: torch.Tensor) -> Any:
        answer = module(pixels)
        if next(calls) == when:
            raise error
        return answer

    compiler.run = run
    plain, failing = new_runner("plain"), new_runner("failing")
    trained(plain, still(digits), False)
    outcome = trained(failing, still(digits))
    assert outcome.reason == "completed" and outcome.flags == {}
    assert outcome.note.endswith(f"not compiled any more: {str(error) or 'OutOfMemoryError'}")
    assert failing.best()[0] == plain.best()[0]
    assert failing.numbers() == plain.numbers()
    assert next(calls) == when + 1


@pytest.mark.slow
def test_where_torch_records_nothing_the_trial_is_compiled_and_says_no_more(
    digits: Any, new_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own compiler, on a CPU: what is asked of it for a GPU does no harm."""
    monkeypatch.setattr(graphs, "DEVICES", ("cpu",))
    torch.compiler.reset()
    plain, whole = new_runner("plain"), new_runner("whole")
    trained(plain, still(digits), False)
    note = trained(whole, still(digits)).note
    assert note.startswith("compiled in ") and "graphs" not in note
    for mine, others in zip(whole.evaluations, plain.evaluations, strict=True):
        assert mine.metrics["loss"] == pytest.approx(others.metrics["loss"], rel=1e-3)


def test_agreement_is_up_to_rounding() -> None:
    def passed(loss: float, norm: float) -> Any:
        return graphs.Rehearsed(torch.tensor(loss), torch.tensor(norm), False)

    def agree(one: Any, other: Any, dtype: torch.dtype = torch.float32) -> bool:
        return graphs.agree([one], [other], dtype)

    assert agree(passed(1.0, 3.0), passed(1.005, 2.98))
    assert not agree(passed(1.0, 3.0), passed(1.02, 3.0))
    assert not agree(passed(1.0, 3.0), passed(1.0, 3.1))
    assert agree(passed(1.0, 3.0), passed(1.02, 3.1), torch.bfloat16)
    assert agree(passed(1e-4, 3e-4), passed(5e-4, 1e-4))  # as good as nothing
    assert not agree(passed(math.nan, 1.0), passed(math.nan, 1.0))
