"""Each benchmark runs in its short form; what one computes from times is computed right."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from optuna.pruners import NopPruner, SuccessiveHalvingPruner

from sft_tune.run.events import TrialEnded
from sft_tune.search.samplers import make_sampler
from tests.benchmarks import BENCHMARKS, Table, load
from tests.benchmarks.overhead import Record, cost_of
from tests.benchmarks.recorded import curves, record, study
from tests.benchmarks.replaying import Pool, replay

ROOT = Path(__file__).parents[2]
COLUMN_OF = {
    "overhead": "own cost",
    "heads": "wall, cached",
    "scale": "100 trials",
    "replay": "own horizon",
    "to_target": "Ray Tune ASHA",
    "to_target_frozen": "Ray Tune ASHA",
    "to_target_images": "Ray Tune ASHA",
    "throughput_images": "limit: training alone",
    "throughput_short": "limit: training alone",
    "throughput_texts": "limit: training alone",
}


def ended(number: int, slot: int, seconds: float) -> TrialEnded:
    return TrialEnded(
        number=number,
        slot=slot,
        reason="completed",
        value=0.5,
        seconds=seconds,
        note="",
        leads=False,
        params={},
    )


def test_the_cost_is_what_lies_between_the_trials_of_a_slot() -> None:
    record = Record(begun=0.0, started=[7.0])
    for number, (slot, at, seconds) in enumerate(
        [(0, 20.0, 9.0), (1, 21.0, 10.0), (0, 31.0, 10.0), (1, 31.0, 9.5), (0, 41.0, 9.5)]
    ):
        record.ended.append(ended(number, slot, seconds))
        record.ended_at.append(at)
        record.statements_at.append(100 * number)
        record.waited[number] = 0.5
    cost = cost_of(record)
    assert (cost.trials, cost.inside, cost.given, cost.waited) == (3, 27.5, 31.0, 1.5)
    assert cost.share == pytest.approx(3.5 / 31)
    assert (cost.start, cost.statements) == (7.0, 100.0)


def test_a_table_is_aligned() -> None:
    table = Table("what", ("name", "n"), [("long name", "1"), ("x", "20")], ["a note"])
    assert table.text().splitlines() == [
        *("what", "", "name        n", "long name   1", "x          20", "", "a note")
    ]


def test_every_benchmark_of_the_registry_is_there() -> None:
    for name in BENCHMARKS:
        assert importlib.import_module(f"tests.benchmarks.{name}").__doc__
        assert callable(load(name))


def test_a_name_that_is_none_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "nonsense"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert "no benchmark 'nonsense'; there are scale, " in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "column"), COLUMN_OF.items())
def test_the_short_form_runs(name: str, column: str) -> None:
    if name.startswith(("throughput", "to_target")):
        pytest.importorskip("ray")
        if not (ROOT.parent / "shared" / "models").exists():
            pytest.skip("needs the data and models of ../shared")
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--short", name],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert column in done.stdout


@pytest.mark.slow
def test_curves_are_recorded_as_the_table_says() -> None:
    shipped = curves(2)
    assert record(2).exists()
    own = curves(2)
    assert own.params == shipped.params
    assert own.own.shape == (2, 10)
    for i, epochs in enumerate(own.epochs):
        # Rung 10 and the last epoch are one evaluation.
        assert own.own[i, 9] == own.by_epoch[i, epochs - 1]
        assert np.isnan(own.by_epoch[i, epochs:]).all()


def test_a_replay_counts_what_it_spends() -> None:
    pool = Pool(curves(30), study())
    sampler_of = functools.partial(make_sampler, study())
    plain, again = (replay(pool, sampler_of, NopPruner(), Pool.epochs, budget=60) for _ in range(2))
    assert plain == again
    assert plain[-1].epochs >= 60 > plain[-2].epochs
    assert [step.best for step in plain] == sorted(step.best for step in plain)
    asha = SuccessiveHalvingPruner(min_resource=10, reduction_factor=4)
    pruned = replay(pool, sampler_of, asha, Pool.own_rungs, budget=60)
    assert len(pruned) > len(plain)
