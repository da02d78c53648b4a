"""Studies side by side, of studies whose cost, luck and truth are set here."""

from __future__ import annotations

import itertools
import json
import random
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from sft_tune.errors import UserError
from sft_tune.store.rows import TrialRow
from sft_tune.view.comparison import Comparison, compared, marginal_html
from sft_tune.view.contest import contest
from sft_tune.view.contest_cost import outcomes, steps_of
from sft_tune.view.contest_tables import contest_json, draw_tables, in_words, tables
from sft_tune.view.evidence import gather
from sft_tune.view.finalists import standings
from sft_tune.view.marginal import marginal, marginal_cells, marginal_records, marginal_words
from sft_tune.view.material import Material
from sft_tune.view.statistics import best_of_orders, expected_best
from sft_tune.view.words import score
from tests.view.conftest import Draw
from tests.view.examples import pruned_row, rung_row, study_spec, trial_row
from tests.view.materials import START, material, study_record
from tests.view.test_finalists import run


def timed(number: int, value: float | None, start: float, seconds: float, **row: Any) -> TrialRow:
    begun = START + timedelta(seconds=start)
    return trial_row(
        number, value, started=begun, ended=begun + timedelta(seconds=seconds), **row
    )._replace(seconds=seconds)


def search(values: list[float], *, cost: float = 10.0, **changes: Any) -> Material:
    rows = [timed(n, v, n * cost, cost) for n, v in enumerate(values)]
    return material(rows, **changes)


def test_every_order_of_few_trials_says_what_the_formulas_say() -> None:
    values = [0.1, 0.4, 0.4, 0.7, 0.9, 0.2]
    for count in (1, 2, 3, 6):
        every = [max(order[:count]) for order in itertools.permutations(values)]
        assert expected_best(values, count, maximize=True) == pytest.approx(np.mean(every))
        low, high = best_of_orders(values, count, maximize=True)
        assert np.mean(np.array(every) < low) <= 0.025 and np.mean(np.array(every) > high) <= 0.025
        least = best_of_orders([-v for v in values], count, maximize=False)
        assert least == (-high, -low)
    assert best_of_orders(values, 6, maximize=True) == (0.9, 0.9)
    with pytest.raises(ValueError):
        best_of_orders(values, 7, maximize=True)


def test_the_true_best_of_a_random_search_lies_in_its_interval_as_often_as_it_says() -> None:
    """Values are uniform: the best of the first quarter is in the interval of orders at 95 %."""
    draw = random.Random(0)
    inside, rounds = 0, 400
    for _ in range(rounds):
        values = [draw.random() for _ in range(40)]
        low, high = best_of_orders(values, 10, maximize=True)
        inside += low <= max(values[:10]) <= high
    assert inside / rounds == pytest.approx(0.95, abs=0.035)


def test_costs_add_up_and_time_without_a_trial_is_nobodys() -> None:
    rows = [
        timed(0, 0.5, 0, 10),
        timed(1, 0.7, 5, 10),  # beside trial 0
        timed(2, 0.6, 1000, 20, state="PRUNED", reason="pruned"),  # after a night
        timed(3, 0.9, 1000, 30, duplicate_of=1),
        timed(4, None, 1010, 30, state="FAIL", reason="crashed"),
    ]
    steps = steps_of(material(rows))
    assert [step.best for step in steps] == [0.5, 0.7, 0.7, 0.9, 0.9]
    assert [step.wall for step in steps] == [10, 15, 35, 45, 55]
    assert [step.seconds for step in steps] == [10, 20, 40, 40, 70]
    unknown = steps_of(material([rows[0], rows[1]._replace(started=None)]))
    assert [step.wall for step in unknown] == [None, None]


def test_a_pause_inside_a_trial_is_nobodys_either() -> None:
    rows = [timed(0, 0.5, 0, 10), timed(1, 0.7, 12, 70), timed(2, 0.6, 90, 20)]
    # Of these two, 30 seconds on the device took 1000 from begin to end, side by side.
    rows += [timed(3, 0.4, 110, 1000)._replace(seconds=30), timed(4, 0.3, 110, 1001)]
    rows[4] = rows[4]._replace(seconds=30)
    walls = [step.wall for step in steps_of(_ran(rows, 141.0))]
    assert walls[:3] == [10, 80, 100]
    assert walls[-1] == pytest.approx(141.0, abs=1e-3)
    assert [step.wall for step in steps_of(_ran(rows, 2000.0))][-1] == 1101
    # Less than all trials took on the device it cannot be.
    assert [step.wall for step in steps_of(_ran(rows[:3], 50.0))] == [10, 80, 100]


def _ran(rows: list[TrialRow], seconds: float) -> Material:
    found = material(rows)
    return found._replace(study=found.study._replace(active_seconds=seconds))


def test_the_smallest_budget_is_the_same_for_all() -> None:
    quick = search([0.5, 0.6, 0.8, 0.7], cost=10)  # 40 s, 4 trials
    slow = search([0.6, 0.7, 0.75], cost=30)  # 90 s, 3 trials
    found = contest([quick, slow], ["quick", "slow"], [None, None])
    assert found.same == {"trials": 3, "seconds": 40, "wall": 40}
    first, second = found.entrants
    assert first.at_same == {"trials": 0.8, "seconds": 0.8, "wall": 0.8}
    assert second.at_same == {"trials": 0.75, "seconds": 0.6, "wall": 0.6}
    assert [chance.trials for chance in first.chances] == [1, 2, 4]
    assert [chance.trials for chance in second.chances] == [1, 1, 1]
    assert first.chances[0].expected == pytest.approx(0.65) and first.chances[0].found == 0.5
    assert first.chances[-1][2:] == (0.8, 0.8, 0.8, 0.8)
    assert [entrant.label for entrant in found.leaders] == ["quick"]


def test_of_losses_the_lowest_leads_and_what_is_close_is_told() -> None:
    losses = [search(v, metric="loss", direction="minimize") for v in ([0.5, 0.3], [0.4, 0.6])]
    low = contest(losses, ["a", "b"], [None, None])
    assert low.leaders[0].label == "a" and low.close is None
    near = [search([0.90]), search([0.91])]  # of 100 examples each
    assert contest(near, ["a", "b"], [None, None]).close is True
    assert contest([search([0.5]), search([0.9])], ["a", "b"], [None, None]).close is False


def test_values_on_other_data_are_not_weighed_against_each_other() -> None:
    other = study_spec(data={"source": "torchvision:CIFAR10"})
    found = contest([search([0.5]), search([0.9], spec=other)], ["a", "b"], [None, None])
    assert found.other_data == ("source",) and found.close is None
    assert "do not name the same data (data.source)" in in_words(found)[1]
    assert contest_json(found)["other_data"] == ["source"]


def test_a_pruned_trial_is_never_the_best_and_a_failed_one_found_nothing() -> None:
    rows = [
        timed(0, 0.6, 0, 10),
        timed(1, 0.9, 10, 2, state="PRUNED", reason="pruned"),
        timed(2, 0.4, 12, 2, state="PRUNED", reason="pruned"),
        timed(3, None, 14, 1, state="FAIL", reason="crashed"),
        timed(4, float("nan"), 15, 1, state="PRUNED", reason="diverged"),
    ]
    assert sorted(outcomes(material(rows))) == [0.4, 0.4, 0.4, 0.6, 0.6]
    assert outcomes(material(rows[1:])) == []


def test_studies_of_different_objectives_are_refused() -> None:
    loss = search([0.5], metric="loss", direction="minimize")
    with pytest.raises(UserError, match="one metric can be compared: a has 'accuracy'"):
        contest([search([0.5]), loss], ["a", "b"], [None, None])
    other = search([0.5], direction="minimize")
    with pytest.raises(UserError, match="one direction"):
        contest([search([0.5]), other], ["a", "b"], [None, None])
    foreign = search([0.5], managed=False)
    with pytest.raises(UserError, match="import --metric"):
        contest([search([0.5]), foreign], ["a", "b"], [None, None])


def both() -> Comparison:
    """Return a comparison of a study with finalists and one of another sampler without."""
    confirmed, plain = search([0.5, 0.8, 0.7]), search([0.6, 0.7, 0.75, 0.7])
    spec = study_spec(sampler={"name": "random"}, pruner={"name": "none"})
    plain = plain._replace(record=study_record(spec))
    runs = [run(1, seed, 0.7 + seed / 100) for seed in range(3)]
    return compared(
        [confirmed, plain], ["A", "<b>"], [standings(study_spec(), confirmed.trials, runs), None]
    )


def test_a_comparison_says_it_in_tables_words_frames_and_a_page(draw_text: Draw) -> None:
    found = both()
    text = draw_text(draw_tables(tables(found.result), in_words(found.result)), 100)
    assert "tpe, asha" in text and "random, no pruner" in text
    assert "With the same budget (30s device) A found accuracy 0.8000; <b> 0.7500." in text
    assert "learning_rate" in text and "0.7100 ±" in text and "* Later trials" in text
    record = json.loads(json.dumps(contest_json(found.result)))
    assert record["studies"][0]["best_at_same_seconds"] == 0.8
    assert record["confirmed"][0]["validation"]["mean"] == pytest.approx(0.71)
    assert list(found.studies.index) == ["A", "<b>"] and len(found.steps) == 7
    assert found.winners.loc["learning_rate"].tolist() == [2e-3, 3e-3]
    assert found.shares["trials"].tolist() == [1, 1, 3, 1, 1, 3]
    with pytest.raises(UserError, match="no axis is called 'dollars'"):
        found.plot("dollars")
    page = found.to_html() + found._repr_html_()
    assert page.count('<div class="plot"') == 3 and "&lt;b&gt;" in page and "<td><b>" not in page
    assert len(found.plot("wall").data) == 2
    assert repr(found) == "<Comparison by accuracy: 'A' 0.8000, '<b>' 0.7500>"


def test_confirmed_trials_are_compared_seed_by_seed() -> None:
    """What a seed does to both is large beside the true difference of 0.01, and cancels out."""
    first, second = search([0.8, 0.7]), search([0.7, 0.9])
    luck = [0.05, -0.03, 0.0, 0.04]
    stand = [
        standings(study_spec(), one.trials, [run(n, s, level + luck[s]) for s in range(4)])
        for one, n, level in ((first, 0, 0.75), (second, 1, 0.76))
    ]
    found = contest([first, second], ["a", "b"], stand)
    assert found.differences[0] is None and found.differences[1] is not None
    assert found.differences[1].mean == pytest.approx(0.01)
    assert found.differences[1].half == pytest.approx(0.0, abs=1e-9)
    other = standings(study_spec(), second.trials, [run(1, 9, 0.8)])
    assert contest([first, second], ["a", "b"], [stand[0], other]).differences == (None, None)


def test_a_comparison_of_studies_without_results_says_so(draw_text: Draw) -> None:
    found = compared([material(), search([0.5])], ["a", "b"], [None, None])
    assert "no study has completed a trial yet" in found.to_html()
    draw_text(draw_tables(tables(found.result), in_words(found.result)), 100)


SPACE = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "schedule": ["linear", "cosine"],
}


def test_the_marginal_mean_is_told_apart_from_what_was_chosen_along_with_it() -> None:
    """The score is of the learning rate alone; cosine was mostly tried with good ones."""
    draw = random.Random(1)
    rows, rungs = [], []
    for number in range(120):
        good = draw.random() < 0.5
        rate = 10 ** (draw.uniform(-2.5, -1) if good else draw.uniform(-4, -2.5))
        schedule = "cosine" if good != (draw.random() < 0.15) else "linear"
        value = 0.6 + 0.1 * np.log10(rate / 1e-4) + draw.gauss(0, 0.005)
        rows.append(trial_row(number, value, params={"learning_rate": rate, "schedule": schedule}))
        rungs.append(rung_row(number, 100, value, 1.0))
    evidence = gather(study_spec(space=SPACE), rows, rungs)
    by = {group.label: group for group in marginal(evidence, "schedule").groups}
    plain = by["cosine"].mean.mean - by["linear"].mean.mean
    adjusted = (by["cosine"].adjusted or 0) - (by["linear"].adjusted or 0)
    assert plain > 0.08
    half = by["cosine"].adjusted_half
    assert half is not None and half < 0.01 and abs(adjusted) <= 2 * half
    rates = marginal(evidence, "learning_rate")
    levels = [group.adjusted or 0 for group in rates.groups]
    assert len(levels) == 4 and levels == sorted(levels)
    # From the middle of the lowest to that of the highest quarter the truth is 0.225.
    assert levels[-1] - levels[0] == pytest.approx(0.225, abs=0.02)
    span = rates.span
    assert span is not None and span[0] == rates.groups[-1].label and span[2] > span[3]
    assert "is ahead of the worst" in " ".join(marginal_words(rates))
    assert f" ± {score(rates.groups[0].adjusted_half)}" in marginal_cells(rates).rows[0][5]
    assert rates.influence is not None and rates.influence.p < 0.01


def test_the_mean_of_two_trials_says_no_more_than_the_metric_can_be() -> None:
    """It once said an accuracy of 0.5168 ± 4.0106."""
    rows = [
        trial_row(n, value, params={"learning_rate": 1e-3, "schedule": schedule})
        for n, (value, schedule) in enumerate([(0.2, "linear"), (0.9, "linear"), (0.5, "cosine")])
    ]
    found = marginal(gather(study_spec(space=SPACE), rows, []), "schedule")
    cells = {row[0]: row for row in marginal_cells(found).rows}
    assert cells["linear"][2] == cells["linear"][7] == "0.5500 (0 to 1)"
    assert cells["cosine"][2] == "0.5000"
    assert "0.5500 (0 to 1)" in marginal_html(found)


def test_pruned_trials_count_at_what_all_have_reached(draw_text: Draw) -> None:
    """Of the bad schedule only one lucky trial survives: at the end it would look the better."""
    rows, rungs = [], []
    for number in range(10):
        bad = number % 2 == 0
        early = 0.2 if bad and number else 0.4
        cut = bad and number > 0
        make = pruned_row if cut else trial_row
        params = {"learning_rate": 1e-3, "schedule": "linear" if bad else "cosine"}
        rows.append(
            make(number, value=0.9 if number == 0 else early if cut else 0.7, params=params)
        )
        rungs.append(rung_row(number, 20, early, 1.0))
        if not cut:
            rungs.append(rung_row(number, 100, 0.9 if number == 0 else 0.7, 5.0))
    found = marginal(gather(study_spec(space=SPACE), rows, rungs), "schedule")
    cosine, linear = found.groups
    assert (cosine.label, linear.label) == ("cosine", "linear")
    assert (cosine.mean.mean, linear.mean.mean) == (pytest.approx(0.4), pytest.approx(0.24))
    assert linear.final is not None and (linear.completed, linear.final.mean) == (1, 0.9)
    assert found.where == "at 20 %, which all trials reached"
    assert cosine.adjusted is None  # too few trials for a model
    text = draw_text(draw_tables([marginal_cells(found)], marginal_words(found)), 100)
    assert "0.2400 ± 0.1111" in text and "permutation p" in text
    # 2 schedules; the learning rate was not varied, so that it takes nothing out.
    assert "adjusted: not known; to take out what the others explain needs 12 trials" in text
    assert [record["n"] for record in marginal_records(found)] == [5, 5]
    assert "by schedule" in marginal_html(found)
    unknown = "^study 's' does not search 'epochs'; it searches learning_rate"
    with pytest.raises(UserError, match=unknown):
        marginal(gather(study_spec(space=SPACE), rows, rungs), "epochs")
    with pytest.raises(UserError, match="no trial of study 's' has a value"):
        marginal(gather(study_spec(space=SPACE), [], []), "schedule")
