"""How finalists stand, of studies whose truth is set here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sft_tune.store.finalist_rows import FinalistRow
from sft_tune.view.finalists import Standings, standings
from sft_tune.view.finalists_tables import draw_standings, standings_json
from sft_tune.view.finalists_words import (
    confirmed_in_words,
    fresh_in_words,
    in_words,
    leader_in_words,
    leads_to,
)
from tests.view.conftest import Draw
from tests.view.examples import DEFAULT, study_spec, trial_row


def run(number: int, seed: int, value: float | None, **changes: Any) -> FinalistRow:
    given: dict[str, Any] = {name: None for name in FinalistRow._fields}
    given |= {"number": number, "seed": seed, "phase": "ended", "reason": "completed"}
    given |= {"value": value, "metrics": {}, "test_metrics": {}, "seconds": 2.0, "attempts": 1}
    return FinalistRow(**{**given, **changes})


def stand(
    scores: dict[int, list[float]], search: dict[int, float], test: float | None = None
) -> Standings:
    """Return how finalists of these scores over seeds stand; trial 9 is the default."""
    rows = [
        trial_row(number, value, params=DEFAULT if number == 9 else {**DEFAULT, "x": number})
        for number, value in search.items()
    ]
    runs = [
        run(n, seed, v, test_metrics={} if test is None else {"accuracy": v + test})
        for n, values in scores.items()
        for seed, v in enumerate(values)
    ]
    found = standings(study_spec(), rows, runs)
    assert found is not None
    return found


def test_a_clear_winner_is_confirmed() -> None:
    found = stand(
        {1: [0.90, 0.91, 0.92], 2: [0.80, 0.81, 0.82], 9: [0.5, 0.51, 0.52]},
        {1: 0.93, 2: 0.85, 9: 0.5},
        test=-0.02,
    )
    assert found.confirmed and found.leader.number == found.winner == 1
    leader, second, default = found.finalists
    assert leader.chance is not None and leader.chance > 0.9
    assert default.is_default and leader.to_default is not None
    assert leader.to_default.mean == pytest.approx(0.4)
    assert second.to_leader is not None and second.to_leader.mean == pytest.approx(-0.1)
    assert leader.test is not None and leader.test.mean == pytest.approx(0.89)
    assert leader.luck is not None and leader.luck.mean == pytest.approx(0.02)
    assert confirmed_in_words(found).startswith("yes: 0.9100")
    said = "3 finalists, trial 1 leads, accuracy 0.9100 ± "
    assert said in repr(found) and len(repr(found)) < 100


def test_a_lucky_winner_is_not_confirmed() -> None:
    found = stand({1: [0.80, 0.90, 0.85], 2: [0.81, 0.89, 0.86]}, {1: 0.95, 2: 0.86})
    assert not found.confirmed
    assert confirmed_in_words(found).startswith("no: ")
    won = found.searched
    assert won is not None and won.luck is not None and won.luck.mean == pytest.approx(0.10)


def test_luck_is_the_bias_of_choosing_the_best_of_many() -> None:
    """Equal configurations, noise 0.01: the best of 20 is flattered by 1.867 deviations."""
    random = np.random.default_rng(0)
    luck = []
    for _ in range(300):
        search = random.normal(0.8, 0.01, 20)
        won = int(search.argmax())
        found = stand({won: list(random.normal(0.8, 0.01, 5))}, {won: float(search[won])})
        assert found.leader.luck is not None
        luck.append(found.leader.luck.mean)
    assert np.mean(luck) == pytest.approx(0.01867, abs=0.001)


def test_no_run_no_standings_and_open_runs_are_not_confirmed() -> None:
    rows = [trial_row(1, 0.9)]
    assert standings(study_spec(), rows, []) is None
    assert standings(study_spec(), rows, [run(1, 0, None, reason="diverged")]) is None
    clear = [run(1, s, 0.9 + s / 1000) for s in range(3)]
    clear += [run(2, s, 0.5 + s / 1000) for s in range(2)]
    rows.append(trial_row(2, 0.5))
    waits = run(2, 2, None, phase="waiting", reason=None)
    found = standings(study_spec(), rows, [*clear, waits])
    assert found is not None and found.open == 1 and not found.confirmed
    failed = standings(study_spec(), rows, [*clear, run(2, 2, None, reason="diverged")])
    assert failed is not None and failed.finalists[1].failed == {"diverged": 1}


def test_the_leader_is_named_with_the_commands_that_lead_to_it() -> None:
    """`confirm` once refuted the winner, and `best` went on to show it alone."""
    found = stand({1: [0.80, 0.81, 0.85], 2: [0.90, 0.89, 0.86]}, {1: 0.95, 2: 0.89, 9: 0.5})
    assert found.overtaken
    assert leader_in_words(found).startswith("trial 2 leads: 0.8833 ±")
    assert "`sft-tune show s 2`" in leads_to(found)
    assert "`sft-tune export s DIR --trial 2`" in leads_to(found)
    assert leads_to(found) + "." in in_words(found)
    fresh = fresh_in_words(found)
    assert "trial 2 leads with 0.8833" in fresh and "trial 1 has 0.8200" in fresh
    gone = found.leader._replace(checkpoint=None)
    assert "export" not in leads_to(found._replace(finalists=(gone, *found.finalists[1:])))
    held = stand({1: [0.90, 0.91], 2: [0.80, 0.81]}, {1: 0.95, 2: 0.89})
    assert not held.overtaken and leader_in_words(held) == ""
    assert not any("export" in line for line in in_words(held))


def test_one_seed_says_nothing_about_chance(draw_text: Draw) -> None:
    found = stand({1: [0.9], 2: [0.8]}, {1: 0.9, 2: 0.8})
    assert found.leader.chance is None and not found.confirmed
    assert "--seeds 2 or more" in draw_text(draw_standings(found), 120)


def test_without_a_test_split_it_is_said(draw_text: Draw) -> None:
    scores, search = {1: [0.9, 0.91], 2: [0.8, 0.81]}, {1: 0.9, 2: 0.8}
    without = " ".join(draw_text(draw_standings(stand(scores, search)), 120).split())
    assert "The data has no test split" in without
    with_test = draw_text(draw_standings(stand(scores, search, test=0.0)), 120)
    assert "no test split" not in with_test and "test" in with_test


def test_80_columns_hold_every_number_whole(draw_text: Draw) -> None:
    found = stand({23: [0.90, 0.92], 9: [0.70, 0.75]}, {23: 0.95, 9: 0.8}, test=0.0)
    text = draw_text(draw_standings(found), 80)
    assert "…" not in text
    assert "0.7250 (0.4073 to 1)" in text and "-0.1850 ± 0.1906" in text and "9 (default)" in text


def test_no_interval_goes_beyond_what_the_metric_can_be() -> None:
    """Two seeds once gave an accuracy of 0.4429 ± 0.8494."""
    found = stand({1: [0.2, 0.7], 9: [0.1, 0.8]}, {1: 0.9, 9: 0.5}, test=0.05)
    leader = found.leader
    assert (leader.validation.low, leader.validation.high) == (0.0, 1.0)
    for one in found.finalists:
        for interval in (one.validation, one.test, one.to_leader, one.to_default, one.luck):
            if interval is not None:
                assert interval.low is not None and interval.high is not None
                assert interval.high - interval.low <= 2.0


def test_of_two_there_is_one_probability(draw_text: Draw) -> None:
    """Of the same two `confirm` once said 90 % and 97 %."""
    found = stand({1: [0.92, 0.90, 0.94], 9: [0.91, 0.85, 0.90]}, {1: 0.93, 9: 0.86})
    text = " ".join(draw_text(draw_standings(found), 120).split())
    assert text.count("with a probability of") == 1 and "against the default" in text


def test_as_plain_values() -> None:
    told = standings_json(stand({1: [0.9, 0.91], 2: [0.8, 0.81]}, {1: 0.9, 2: 0.8}))
    assert told is not None
    assert (told["leader"], told["search_winner"], told["runs_ended"]) == (1, 1, 4)
    assert told["finalists"][0]["validation"]["n"] == 2
    assert standings_json(None) is None
