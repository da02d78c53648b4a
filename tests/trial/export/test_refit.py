"""Training on validation too, up to the rung at which the trial was best."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sft_tune.trial.loop import run_trial
from tests.trial.conftest import Configure, Runner


@pytest.mark.parametrize("before_last", [0, 1])
def test_a_refit_keeps_the_weights_of_the_rung_that_it_is_told(
    new_runner: Callable[[str], Runner], configure: Configure, before_last: int
) -> None:
    config = configure()
    rung = 100 - before_last * 100 // config.objective.rungs
    plain = new_runner("plain")
    plain.run(config)
    runner = new_runner("refit")
    reached: list[tuple[int, int]] = []

    def report(evaluation: object) -> bool:
        reached.append((evaluation.progress, evaluation.horizon))  # type: ignore[attr-defined]
        return reached[-1][0] < rung

    outcome = run_trial(
        config,
        runner.paths,
        device="cpu",
        cache=runner.cache,
        report=report,
        should_stop=lambda: False,
        checkpoint_seconds=1e9,
        evaluation_batch_size=16,
        refit_to=rung,
    )
    assert reached[-1][0] == rung
    assert outcome.best_progress == rung
    # More examples, and so more steps, than train alone has.
    assert reached[0][1] > plain.evaluations[0].horizon
    _, header = runner.best()
    assert header["progress"] == rung
