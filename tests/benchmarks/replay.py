"""Samplers and pruners replayed over recorded curves: what they lose against what they cost.

Each search draws from the fine-tunes of `recorded`, with the pruners fed at the rungs of
each trial's own horizon, as the product does, and by epoch, as scripts do. Regret is the accuracy
that the best of all recorded trials has at its best rung, less that of the search's best completed
trial, in percentage points, in the mean over repetitions with 95 % bootstrap intervals. Every
search is repeated under the same seeds, so that it is compared with the default pruner seed by
seed. It is what the defaults of `sampler` and `pruner` rest on.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)

from sft_tune.search.pruners import make_pruner
from sft_tune.search.samplers import make_sampler
from tests.benchmarks import Table
from tests.benchmarks.recorded import LONGEST, TRIALS, curves, study
from tests.benchmarks.replaying import Pool, Step, replay

REPEATS = 400
LARGER = "SFT_TUNE_BENCHMARK_REPLAYS"
"""Environment variable: how often each search is repeated, in place of the usual number."""
BUDGETS = (55, 110, 220)
"""Epochs: as many as 5, 10 and 20 trials of the mean length have."""
RESAMPLES = 2000


SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    "qmc start": {"startup": "qmc"},
    "cost-aware": {"cost_aware": True},
}
"""Of a sampler, by what stands after its name."""


class Search(NamedTuple):
    """One line of the table; ``pruner`` is a section of a study file, or fed by epoch."""

    sampler: str
    pruner: dict[str, Any] | str

    def label(self) -> tuple[str, str, str]:
        """Return sampler, pruner, and what the pruner is fed with."""
        if isinstance(self.pruner, str):
            return self.sampler, self.pruner, "epochs"
        name = self.pruner["name"]
        numbers = [f"{key} {value}" for key, value in self.pruner.items() if key != "name"]
        fed = "-" if name == "none" else "own horizon"
        return self.sampler, " ".join([name, *numbers]), fed


BY_EPOCH: dict[str, Callable[[], BasePruner]] = {
    "asha reduction 4": lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=4),
    "asha reduction 3": lambda: SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    "hyperband": lambda: HyperbandPruner(min_resource=1, max_resource=LONGEST, reduction_factor=3),
    "median": MedianPruner,
    "percentile 25": lambda: PercentilePruner(25.0),
}
DEFAULT: dict[str, Any] = {"name": "asha"}
OWN: tuple[dict[str, Any], ...] = (
    {"name": "none"},
    DEFAULT,
    {"name": "asha", "startup_trials": 0},
    {"name": "asha", "first": 10, "reduction": 4, "startup_trials": 0},
    {"name": "asha", "first": 10, "reduction": 4},
    {"name": "asha", "first": 10, "reduction": 3},
    {"name": "asha", "first": 10, "reduction": 2},
    {"name": "asha", "first": 30, "reduction": 3},
    {"name": "hyperband"},
    {"name": "median"},
    {"name": "percentile", "percentile": 25.0},
)
SEARCHES = (
    *(Search("random", pruner) for pruner in OWN),
    *(Search("random", pruner) for pruner in BY_EPOCH),
    *(Search("qmc", pruner) for pruner in (OWN[0], DEFAULT)),
    *(Search("tpe", pruner) for pruner in (OWN[0], DEFAULT, OWN[3], OWN[9], "median")),
    *(Search("tpe, qmc start", pruner) for pruner in (OWN[0], DEFAULT, "median")),
    *(Search("tpe, cost-aware", pruner) for pruner in (OWN[0], DEFAULT)),
)


def run(short: bool) -> Table:
    """Replay every search 400 times over 1,000 trials (``short``: 2 times over 24)."""
    trials, repeats = (24, 2) if short else (TRIALS, int(os.environ.get(LARGER, REPEATS)))
    budgets = (20, 40, 60) if short else BUDGETS
    jobs = [(search, trials, repeats, budgets[-1]) for search in SEARCHES]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as executor:
        found = list(executor.map(_repeat, *zip(*jobs, strict=True)))
    top = _pool(trials).top
    plain = [_regret(steps, budgets[-1], top) for steps in found[0]]
    aim = float(np.median(plain))
    rows = []
    for search, histories in zip(SEARCHES, found, strict=True):
        cells = [
            _interval([_regret(steps, budget, top) for steps in histories]) for budget in budgets
        ]
        default = found[SEARCHES.index(Search(search.sampler, DEFAULT))]
        apart = _apart(histories, default, budgets[-1])
        reached = np.array([_reached(steps, aim, top) for steps in histories])
        rows.append(
            (
                *search.label(),
                *cells,
                _interval(apart) if any(apart) else "-",
                f"{np.median(reached[:, 0]):.0f}",
                f"{np.median(reached[:, 1]):.1f} s",
                f"{np.mean([len(steps) for steps in histories]):.0f}",
            )
        )
    return Table(
        title=f"{len(SEARCHES)} searches, {repeats} times each, over {trials} recorded fine-tunes "
        f"(best {top:.4f}): regret in percentage points of accuracy, mean [95 %]",
        columns=(
            *("sampler", "pruner", "fed by"),
            *(f"{budget} epochs" for budget in budgets),
            "less default",
            *("epochs to aim", "seconds to aim", "trials"),
        ),
        rows=rows,
        notes=[
            f"aim: regret {aim:.2f}, the median of random search without pruning after "
            f"{budgets[-1]} epochs; medians over all repetitions, those that never reach it too"
        ],
    )


@functools.cache
def _pool(trials: int) -> Pool:
    return Pool(curves(trials), study())


def _repeat(search: Search, trials: int, repeats: int, budget: int) -> list[list[Step]]:
    """Return the histories of a search under as many seeds, the same ones for every search."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pool, histories = _pool(trials), []
    by_epoch = isinstance(search.pruner, str)
    for seed in range(repeats):
        section = {} if isinstance(search.pruner, str) else {"pruner": search.pruner}
        name, _, setting = search.sampler.partition(", ")
        spec = study(sampler={"name": name, **SETTINGS[setting]}, seed=seed, **section)
        pruner = (
            BY_EPOCH[search.pruner]()
            if isinstance(search.pruner, str)
            else make_pruner(spec.pruner)
        )
        histories.append(
            replay(
                pool,
                functools.partial(make_sampler, spec),
                pruner,
                Pool.epochs if by_epoch else Pool.own_rungs,
                budget=budget,
            )
        )
    return histories


def _regret(steps: Sequence[Step], budget: float, top: float) -> float:
    """Return the regret within ``budget`` epochs; before a trial is completed, all of it."""
    known = [step.best for step in steps if step.epochs <= budget and step.best == step.best]
    return 100 * (top - (known[-1] if known else 0.0))


def _apart(
    histories: Sequence[Sequence[Step]], default: Sequence[Sequence[Step]], budget: float
) -> list[float]:
    """Return by how much the regret is larger than with the default pruner, seed by seed."""
    pairs = zip(histories, default, strict=True)
    return [_regret(one, budget, 1.0) - _regret(other, budget, 1.0) for one, other in pairs]


def _reached(steps: Sequence[Step], aim: float, top: float) -> tuple[float, float]:
    """Return the epochs and seconds until the regret is ``aim``; infinite when it never is."""
    for step in steps:
        if 100 * (top - step.best) <= aim + 1e-9:
            return step.epochs, step.seconds
    return float("inf"), float("inf")


def _interval(values: Sequence[float]) -> str:
    draws = np.random.default_rng(0)
    given: NDArray[np.float64] = np.array(values)
    means = draws.choice(given, (RESAMPLES, len(given))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{given.mean():.2f} [{low:.2f}, {high:.2f}]"
