from __future__ import annotations

import math
import random
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import TrialState

from sft_tune.search.cost import CostAwareTPE
from sft_tune.search.distributions import draw, to_distribution
from sft_tune.search.pruners import PRUNERS, make_pruner, may_prune
from sft_tune.search.samplers import make_sampler, search_space
from sft_tune.spec.plan import make_plan, weighs_cost
from sft_tune.spec.search import PrunerSpec
from sft_tune.spec.space import Parameter
from sft_tune.spec.study import StudySpec

SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "schedule": ["cosine", "exponential"],
    "decay_factor": {"low": 0.5, "high": 0.9, "when": {"schedule": "exponential"}},
    "epochs": {"low": 1, "high": 8},
}


def study_spec(sampler: str = "tpe", space: dict[str, Any] | None = None, **rest: Any) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "task": "image-classification",
            "data": {"source": "sklearn:digits"},
            "model": {"name": "builtin:convnet", "weights": "none"},
            "space": SPACE if space is None else space,
            "sampler": {"name": sampler, **rest},
        }
    )


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([1, 2], CategoricalDistribution([1, 2])),
        ({"low": 1, "high": 9}, IntDistribution(1, 9)),
        ({"low": 1, "high": 10, "step": 4}, IntDistribution(1, 9, step=4)),
        ({"low": 1, "high": 64, "log": True}, IntDistribution(1, 64, log=True)),
        ({"low": 0.0, "high": 1.0}, FloatDistribution(0.0, 1.0)),
        ({"low": 0, "high": 0.5, "step": 0.1}, FloatDistribution(0.0, 0.5, step=0.1)),
        ({"low": 1e-5, "high": 1e-1, "log": True}, FloatDistribution(1e-5, 1e-1, log=True)),
    ],
)
def test_each_kind_of_parameter_has_its_distribution(raw: Any, expected: Any) -> None:
    assert to_distribution(Parameter.model_validate(raw)) == expected


@given(
    low=st.decimals(-10, 10, places=4).map(float),
    width=st.decimals("0.1", 10, places=4).map(float),
    step=st.decimals("0.01", 3, places=4).map(float),
)
def test_every_value_that_optuna_may_draw_lies_in_the_parameter(
    low: float, width: float, step: float
) -> None:
    parameter = Parameter(low=low, high=round(low + width, 4), step=step)
    distribution = to_distribution(parameter)
    assert isinstance(distribution, FloatDistribution)
    assert parameter.contains(distribution.low)
    assert parameter.contains(distribution.high)


@pytest.mark.parametrize(
    ("name", "startup"),
    [("random", "random"), ("tpe", "random"), ("gp", "random"), ("qmc", "random"), ("tpe", "qmc")],
)
@pytest.mark.parametrize("cost_aware", [False, True])
def test_a_restarted_study_draws_what_an_undisturbed_one_draws(
    name: str, startup: str, cost_aware: bool
) -> None:
    spec = study_spec(name, startup_trials=3, startup=startup, cost_aware=cost_aware)

    def run(restart_at: int | None) -> list[dict[str, Any]]:
        storage = optuna.storages.InMemoryStorage()
        study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
        drawn = []
        for ordinal in range(8):
            if ordinal == restart_at:
                study = optuna.load_study(storage=storage, study_name="s")
            study.sampler = make_sampler(spec, ordinal)
            trial = study.ask()
            point = draw(trial, spec.space)
            drawn.append(point)
            study.tell(trial, -abs(math.log10(float(str(point["learning_rate"]))) + 3))
        return drawn

    undisturbed = run(None)
    assert run(4) == undisturbed
    assert len({str(point) for point in undisturbed}) == 8
    for point in undisturbed:
        assert ("decay_factor" in point) == (point["schedule"] == "exponential")
    kinds = [type(make_sampler(spec, ordinal)).__name__ for ordinal in (2, 3)]
    assert (kinds[0] == "QMCSampler") == ("qmc" in (name, startup))
    assert (kinds[1] == "QMCSampler") == (name == "qmc")


@pytest.mark.parametrize("cost_aware", [False, True])
def test_what_ended_trials_have_in_common_is_found_once_for_all_samplers(cost_aware: bool) -> None:
    space = {name: part for name, part in SPACE.items() if name != "decay_factor"}
    spec = study_spec("tpe", space, startup_trials=3, cost_aware=cost_aware)
    common = search_space()

    def run(common: IntersectionSearchSpace | None) -> list[dict[str, Any]]:
        study = optuna.create_study(direction="maximize")
        drawn, running = [], []
        for ordinal in range(16):
            study.sampler = make_sampler(spec, ordinal, 0.0, common)
            trial = study.ask()
            drawn.append(draw(trial, spec.space))
            running.append(trial)
            if ordinal % 3:  # two at once, of which the later one ends first
                ended = running.pop()
                ended.report(float(drawn[ended.number]["learning_rate"]), 50)
                state = TrialState.PRUNED if ordinal % 2 else TrialState.COMPLETE
                study.tell(ended, None if ordinal % 2 else 1.0, state=state)
        return drawn

    assert run(common) == run(None)
    assert common._cached_trial_number >= 0  # else Optuna's TPE does not look there any more


def searched(
    spec: StudySpec,
    trials: int,
    parallel: int = 1,
    fixed_cost: float = 0.0,
    costs: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Return the points of a search in which only the schedule matters."""
    study = optuna.create_study(direction="maximize")
    points: list[dict[str, Any]] = []
    while len(points) < trials:
        asked = []
        for _ in range(parallel):
            study.sampler = make_sampler(spec, len(points), fixed_cost, costs=costs)
            trial = study.ask()
            points.append(draw(trial, spec.space))
            asked.append((trial, points[-1]))
        for trial, point in asked:
            study.tell(trial, float(point["schedule"] == "cosine"))
    return points


@pytest.mark.parametrize(
    "epochs", [{"low": 2, "high": 16}, {"low": 2, "high": 16, "log": True}, [2, 16, 8, 4]]
)
@pytest.mark.parametrize("parallel", [1, 3])
def test_a_cost_aware_search_spends_fewer_epochs_where_they_gain_nothing(
    epochs: Any, parallel: int
) -> None:
    def spent(
        cost_aware: bool, trials: slice, startup: str = "random", fixed_cost: float = 0.0
    ) -> float:
        settings = {"cost_aware": cost_aware, "startup": startup}
        spec = study_spec("tpe", {**SPACE, "epochs": epochs}, **settings)
        points = searched(spec, 40, parallel, fixed_cost)
        return sum(point["epochs"] for point in points[trials])

    assert spent(True, slice(10)) < 0.8 * spent(False, slice(10))
    # Where epochs are the least of a trial's cost, they are not spared.
    assert spent(True, slice(10), fixed_cost=1000) > 1.2 * spent(True, slice(10))
    # After points that are not drawn by cost: does Optuna still ask `CostAwareTPE`?
    assert spent(True, slice(10, 40), "qmc") < 0.95 * spent(False, slice(10, 40), "qmc")


def test_a_trial_without_epochs_of_its_own_costs_those_of_the_study_file() -> None:
    space = {
        "schedule": ["cosine", "linear"],
        "epochs": {"low": 5, "high": 20, "when": {"schedule": "cosine"}},
    }
    raw = study_spec(space=space, cost_aware=True).model_dump()
    drawn: list[Any] = []
    for epochs in (1, 50):
        spec = StudySpec.model_validate({**raw, "training": {"epochs": epochs}})
        points = [searched(spec.model_copy(update={"seed": s}), 10) for s in range(5)]
        drawn.append(sum(p["schedule"] == "linear" for some in points for p in some))
    assert drawn[0] > 40 and drawn[1] < 10


def test_a_cost_aware_search_takes_the_cheaper_of_models_that_promise_the_same() -> None:
    models = ["builtin:convnet", "torchvision:resnet18"]
    space = {"schedule": ["cosine", "linear"], "model.name": models}
    spec = study_spec(space=space, cost_aware=True)

    def cheap(costs: dict[str, float], trials: slice) -> int:
        points = [
            searched(spec.model_copy(update={"seed": s}), 30, costs=costs)[trials] for s in range(4)
        ]
        return sum(p["model.name"] == models[0] for some in points for p in some)

    known, after = dict(zip(models, (1.0, 4.0), strict=True)), slice(10, 30)
    assert cheap(known, after) > 1.3 * cheap({}, after)
    # What the dear one gains must have been seen.
    assert cheap(known, slice(10)) == cheap({}, slice(10))


def test_a_cost_aware_search_still_finds_that_epochs_gain() -> None:
    spec = study_spec(space={"epochs": {"low": 1, "high": 16}}, cost_aware=True)
    study = optuna.create_study(direction="maximize")
    for ordinal in range(60):
        study.sampler = make_sampler(spec, ordinal)
        trial = study.ask()
        study.tell(trial, float(str(draw(trial, spec.space)["epochs"])))
    assert study.best_value >= 15


@pytest.mark.parametrize(
    ("budget", "sampler", "expected"),
    [
        ({}, {}, False),
        ({"trials": 9}, {}, False),
        ({"hours": 1}, {}, True),
        ({"hours": 1, "trials": 9}, {}, False),
        ({"target": 0.9, "trials": 9}, {}, True),
        ({"target": 0.9}, {"cost_aware": False}, False),
        ({"hours": 1}, {"name": "random"}, False),
        ({}, {"cost_aware": True}, True),
    ],
)
def test_cost_counts_where_time_or_a_target_ends_the_study(
    budget: dict[str, Any], sampler: dict[str, Any], expected: bool
) -> None:
    raw = {**study_spec().model_dump(), "budget": budget, "sampler": sampler}
    spec = StudySpec.model_validate(raw)
    assert weighs_cost(spec) is expected
    assert isinstance(make_sampler(spec, 0), CostAwareTPE) is expected
    for space in ({"learning_rate": SPACE["learning_rate"]}, {"epochs": ["few", "many"]}):
        assert not weighs_cost(StudySpec.model_validate({**raw, "space": space}))
    models = {"model.name": ["builtin:convnet", "torchvision:resnet18"]}
    assert weighs_cost(StudySpec.model_validate({**raw, "space": models})) is expected


def test_the_default_configuration_comes_first_then_the_enqueued_ones() -> None:
    plan = make_plan(study_spec(enqueue=[{"learning_rate": 3e-3}, {"schedule": "exponential"}]))
    assert plan.fixed(0) == {"learning_rate": 1e-4, "schedule": "cosine", "epochs": 3}
    assert plan.fixed(1) == {"learning_rate": 3e-3, "schedule": "cosine", "epochs": 3}
    assert plan.fixed(2) == {
        "learning_rate": 1e-4, "schedule": "exponential", "decay_factor": 0.9, "epochs": 3,
    }  # fmt: skip
    assert plan.fixed(3) is None


@given(
    choices=st.integers(1, 4),
    points=st.integers(1, 4),
    high=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_a_grid_has_each_cell_once_the_default_one_included(
    choices: int, points: int, high: int, seed: int
) -> None:
    space = {
        "learning_rate": {"low": 1e-5, "high": 1e-2, "log": True, "points": points},
        "batch_size": list(range(8, 8 + choices)),
        "epochs": {"low": 1, "high": high},
    }
    spec = study_spec("grid", space).model_copy(update={"seed": seed})
    plan = make_plan(spec)
    assert plan.cells is not None
    limit = plan.limit(spec.budget)
    assert limit is not None
    tried = [str(plan.fixed(ordinal)) for ordinal in range(limit)]
    assert len(set(tried)) == len(tried)
    # The default may lie between the grid's points; then it is tried besides them.
    assert len(tried) - choices * points * high in (0, 1)


def test_a_grid_of_conditions_has_no_cell_that_differs_in_an_inactive_parameter() -> None:
    space = {
        "schedule": ["linear", "exponential"],
        "decay_factor": {"values": [0.5, 0.9], "when": {"schedule": "exponential"}},
    }
    plan = make_plan(study_spec("grid", space))
    assert {str(plan.fixed(i)) for i in range(3)} == {
        "{'schedule': 'linear'}",
        "{'schedule': 'exponential', 'decay_factor': 0.5}",
        "{'schedule': 'exponential', 'decay_factor': 0.9}",
    }
    assert plan.fixed(3) is None


@pytest.mark.parametrize("name", sorted(PRUNERS))
def test_pruners_leave_good_trials_and_all_but_none_cut_bad_ones(name: str) -> None:
    cut = _cut_of_falling_scores(name, startup=2)
    assert 0 not in cut
    assert bool(cut) == (name != "none")


@pytest.mark.parametrize("name", ["asha", "hyperband", "median", "percentile"])
def test_nothing_is_cut_before_enough_trials_are_completed(name: str) -> None:
    cut = _cut_of_falling_scores(name, startup=4)
    assert cut and min(cut) >= 4
    if name == "asha":
        assert cut == list(range(4, 12))
        assert _cut_of_falling_scores(name, startup=0) == list(range(1, 12))


def _cut_of_falling_scores(name: str, startup: int) -> list[int]:
    """Return which of 12 trials, each worse than the one before, are pruned."""
    spec = PrunerSpec.model_validate({"name": name, "startup_trials": startup, "first": 10})
    study = optuna.create_study(
        direction="maximize",
        pruner=make_pruner(spec),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    cut = []
    for number in range(12):
        score = 1.0 - number / 20  # each worse than the one before
        trial = study.ask()
        for progress in range(10, 101, 10):
            trial.report(score * progress / 100, progress)
            if trial.should_prune():
                cut.append(number)
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, score)
    return cut


@pytest.mark.parametrize("name", ["asha", "hyperband"])
@pytest.mark.parametrize("rungs", [range(10, 101, 10), range(7, 101, 7), (50, 100)])
def test_halving_that_is_asked_only_where_it_may_prune_prunes_the_same(
    name: str, rungs: range
) -> None:
    spec = PrunerSpec.model_validate({"name": name, "first": 10, "reduction": 3})

    def search(everywhere: bool) -> tuple[list[int | None], int]:
        study = optuna.create_study(
            study_name="same", direction="maximize", pruner=make_pruner(spec)
        )
        draws, pruned_at, asked = random.Random(0), [], 0
        for _ in range(60):
            trial, quality, before = study.ask(), draws.random(), 0
            values = [quality + 0.3 * draws.random() for _ in rungs]
            at: int | None = None
            for progress, value in zip(rungs, values, strict=True):
                trial.report(value, progress)
                if everywhere or may_prune(spec, before, progress):
                    asked, before = asked + 1, progress
                    if trial.should_prune():
                        at = progress
                        break
            state = optuna.trial.TrialState.PRUNED if at else optuna.trial.TrialState.COMPLETE
            study.tell(trial, None if at else values[-1], state=state)
            pruned_at.append(at)
        return pruned_at, asked

    (always, often), (rarely, seldom) = search(True), search(False)
    assert always == rarely
    assert any(always)
    assert seldom < often or len(rungs) == 2


def test_other_pruners_may_prune_anywhere_and_none_nowhere() -> None:
    assert may_prune(PrunerSpec.model_validate({"name": "median"}), 30, 40)
    assert not may_prune(PrunerSpec.model_validate({"name": "none"}), 0, 100)
