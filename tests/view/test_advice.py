"""Advice on studies whose truth is set here: what is said, and that the healthy hear nothing."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from sft_tune.spec.study import StudySpec
from sft_tune.store.rows import EvaluationRow, TrialRow
from sft_tune.view.advice import Advice, advice_json, draw_advice
from sft_tune.view.advice_rules import advise, beforehand
from sft_tune.view.advice_space import widened
from sft_tune.view.estimate import Estimate
from sft_tune.view.evidence import gather, seen_to_matter
from tests.view.conftest import Draw
from tests.view.examples import pruned_row, rung_row, study_row, trial_row
from tests.view.test_finalists import run

RATE = {"low": 1e-4, "high": 1e-1, "log": True}
SPACE = {
    "learning_rate": RATE,
    "weight_decay": {"low": 0.0, "high": 0.1},
    "schedule": ["linear", "cosine"],
}
BASE: dict[str, Any] = {
    "name": "s",
    "task": "image-classification",
    "data": {"source": "sklearn:digits"},
    "model": {"name": "builtin:convnet", "weights": "none"},
    "space": SPACE,
    "objective": {"rungs": 4},
    "budget": {"trials": 40},
}
Curve = Callable[[float, int], float]


def saturating(final: float, progress: int) -> float:
    """A curve that is flat from 50 % on."""
    return final * min(1.0, progress / 50)


def study(
    quality: Callable[[dict[str, Any]], float],
    *,
    n: int = 40,
    seed: int = 0,
    curve: Curve = saturating,
    **row: Any,
) -> tuple[list[TrialRow], list[EvaluationRow]]:
    """Return ``n`` random trials of these scores, and their rungs."""
    draw = random.Random(seed)
    rows, rungs = [], []
    for number in range(n):
        params = {
            "learning_rate": 10 ** draw.uniform(-4, -1),
            "weight_decay": draw.uniform(0.0, 0.1),
            "schedule": draw.choice(["linear", "cosine"]),
        }
        value = quality(params) + draw.gauss(0, 0.002)
        rows.append(trial_row(number, value, params=params, **row))
        rungs += [rung_row(number, at, curve(value, at), at / 10) for at in (25, 50, 75, 100)]
    return rows, rungs


def peak(params: dict[str, Any]) -> float:
    """All three matter, the best is inside of every range."""
    return (
        0.9
        - 0.1 * (math.log10(params["learning_rate"]) + 2.5) ** 2
        - 30 * (params["weight_decay"] - 0.05) ** 2
        - 0.05 * (params["schedule"] == "linear")
    )


def kinds(found: list[Advice]) -> list[str]:
    return [piece.kind for piece in found]


def applied(piece: Advice) -> StudySpec:
    """Return the study file with the line of ``piece`` in it, as a person would change it."""
    content = json.loads(json.dumps(BASE))
    assert piece.section is not None and piece.line is not None
    content.setdefault(piece.section, {}).update(yaml.safe_load(piece.line))
    for path in piece.removes:
        section, _, key = path.partition(".")
        del content[section][key]
    return StudySpec.model_validate(content)


def spec(**changes: Any) -> StudySpec:
    return StudySpec.model_validate({**BASE, **changes})


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_study_hears_nothing(seed: int) -> None:
    rows, rungs = study(peak, seed=seed)
    assert advise(spec(), rows, rungs, study=study_row(ended="trials")) == []


def test_nothing_is_said_of_nothing() -> None:
    assert advise(spec(), [], []) == []


def test_the_best_at_the_edge_of_its_range() -> None:
    rows, rungs = study(lambda p: 0.5 + 0.1 * (p["learning_rate"] * 10) ** 0.3, seed=1)
    # The leader is put close to the edge, where the truth has it.
    best = max(rows, key=lambda row: row.value or 0.0)
    params = {**best.params, "learning_rate": 0.099}
    rows[best.number] = trial_row(best.number, 0.99, params=params)
    (piece,) = [p for p in advise(spec(), rows, rungs) if p.kind == "edge"]
    assert piece.numbers["name"] == "learning_rate" and "0.099" in piece.text
    widened = applied(piece).space["learning_rate"]
    assert widened.bounds()[0] == 1e-4 and widened.bounds()[1] > 1e-1


def test_a_wide_range_grows_by_ten_times_at_the_most() -> None:
    rate = StudySpec.model_validate({**BASE, "space": {"learning_rate": {**RATE, "low": 1e-5}}})
    wider = widened("learning_rate", rate.space["learning_rate"], upper=True, free=True)
    assert wider is not None and wider["high"] == 1.0


def test_still_improving_at_the_end() -> None:
    rows, rungs = study(peak, curve=lambda final, at: final * at / 100)
    (piece,) = advise(spec(), rows, rungs)
    assert piece.kind == "horizon" and piece.numbers["gaining"] == 5
    assert applied(piece).training.epochs == 2 * spec().training.epochs


def test_overfitting_is_of_the_flags_of_the_best() -> None:
    flags = {"faults": [{"name": "overfitting", "since": 50, "evidence": "loss rises"}]}
    rows, rungs = study(peak, flags_json=json.dumps(flags))
    (piece,) = advise(spec(training={"epochs": 10}), rows, rungs)
    assert piece.kind == "overfitting" and piece.numbers["since"] == 50
    assert "since 50 %" in piece.text and applied(piece).training.epochs == 5


def test_a_parameter_without_influence_is_to_be_fixed() -> None:
    said = []
    for seed in range(20):
        rows, rungs = study(lambda p: 0.9 - (p["learning_rate"] - 0.03) ** 2 * 60, seed=seed)
        found = [p for p in advise(spec(), rows, rungs) if p.kind == "influence"]
        said += [piece.numbers["name"] for piece in found]
        for piece in found:
            fixed = applied(piece)
            assert piece.numbers["name"] not in fixed.space
    assert "learning_rate" not in said and len(said) >= 10


def test_what_is_seen_to_matter_is_more_than_chance() -> None:
    rows, rungs = study(lambda p: 0.5 + 0.1 * math.log10(p["learning_rate"]), n=24)
    assert seen_to_matter(gather(spec(), rows, rungs)) == ("learning_rate",)
    assert seen_to_matter(gather(spec(), *study(lambda p: 0.5, n=24))) == ()
    assert seen_to_matter(gather(spec(), [], [])) == ()


def partly(params: dict[str, Any]) -> float:
    """The schedule matters above a rate of 0.01 only, the decay a little everywhere."""
    rate = math.log10(params["learning_rate"]) + 2.5
    late = params["schedule"] == "linear" and rate > 0.5
    return 0.9 - 0.1 * rate**2 - 0.03 * late - 10 * (params["weight_decay"] - 0.05) ** 2


def only_together(params: dict[str, Any]) -> float:
    """Schedule and decay matter together: of each alone the means are equal."""
    rate = math.log10(params["learning_rate"]) + 2.5
    alike = (params["schedule"] == "linear") == (params["weight_decay"] > 0.05)
    return 0.9 - 0.1 * rate**2 + 0.02 * alike


def test_what_matters_is_hardly_ever_said_not_to() -> None:
    """Of 200 studies in which everything matters, 1 % may hear of something that does not."""
    wrong, truths = 0, (peak, partly, only_together)
    for seed in range(200):
        rows, rungs = study(truths[seed % 3], n=40 + 30 * (seed % 2), seed=500 + seed)
        wrong += "influence" in kinds(advise(spec(), rows, rungs))
    assert wrong <= 2


def test_where_trials_diverge() -> None:
    rows, rungs = study(peak, n=60, seed=3)
    lost = {r.number for r in rows if r.params["learning_rate"] > 0.02}  # type: ignore[operator]
    rows = [
        r._replace(state="FAIL", reason="diverged", value=None) if r.number in lost else r
        for r in rows
    ]
    rungs = [r for r in rungs if r.number not in lost]
    (piece,) = [p for p in advise(spec(), rows, rungs) if p.kind == "failures"]
    assert piece.numbers["failed"] == piece.numbers["failed_inside"] == len(lost)
    assert piece.numbers["name"] == "learning_rate"
    assert 0.01 < applied(piece).space["learning_rate"].bounds()[1] <= 0.02


def test_a_lead_within_the_noise_is_to_be_confirmed() -> None:
    rows, rungs = study(peak)
    (piece,) = advise(spec(), rows, rungs, examples=100)
    assert piece.kind == "noise" and "sft-tune confirm s" in piece.text
    assert applied(piece).confirm is not None
    assert advise(spec(), rows, rungs, examples=10**9) == []


def test_a_leader_that_fresh_seeds_are_sure_of_needs_no_more_of_them() -> None:
    rows = [trial_row(1, 0.95), trial_row(2, 0.90)]
    runs = [run(n, s, v + s / 1000) for n, v in ((1, 0.8), (2, 0.9)) for s in range(3)]
    assert advise(spec(), rows, [], runs=runs, examples=100) == []
    close = [run(n, s, v) for n in (1, 2) for s, v in enumerate((0.80, 0.83, 0.86))]
    (piece,) = advise(spec(), rows, [], runs=[*close[:5], close[5]._replace(value=0.85)])
    assert "more seeds may decide it" in piece.text


def test_a_tie_is_said_to_be_one() -> None:
    """It once said: leads by 0.0000."""
    rows = [trial_row(n, 0.9 if n in (2, 5, 6) else 0.3) for n in range(8)]
    (piece,) = advise(spec(), rows, [], examples=400)
    assert "3 trials tie at 0.9000 (trial 2 is the first of them)" in piece.text
    assert "400 validation examples cannot tell 2 other trials from it" in piece.text


def crashed(number: int, note: str = "RuntimeError: boom\nmore") -> TrialRow:
    return trial_row(number, None, state="FAIL", reason="crashed", note=note)


def test_where_every_trial_failed_the_error_is_said() -> None:
    """It once said that nothing stands out from chance."""
    rows = [crashed(n) for n in range(5)]
    (piece,) = advise(spec(), rows, [])
    assert piece.kind == "failures"
    assert piece.text == (
        "every trial failed (5 crashed): RuntimeError: boom; `sft-tune show s 0` has the whole "
        "error"
    )
    (piece,) = advise(spec(), [crashed(0)], [])
    assert piece.text.startswith("its one trial failed (1 crashed): RuntimeError: boom;")
    lost = [row._replace(reason="diverged", note="loss is nan") for row in rows[1:]]
    (piece,) = advise(spec(), [rows[0], *lost], [])
    assert "(4 diverged, 1 crashed): loss is nan (4 of them); `sft-tune show s 1`" in piece.text


def test_of_many_trials_a_few_that_crashed_are_no_advice() -> None:
    rows, rungs = study(peak, n=40)
    some = [crashed(40 + n, "OSError: no space") for n in range(8)]
    assert advise(spec(), [*rows, *some[:2]], rungs) == []
    (piece,) = advise(spec(), [*rows, *some], rungs)
    assert piece.text.startswith("of 48 trials 8 crashed: OSError: no space; `sft-tune show s 40`")


def test_a_pruner_that_cuts_what_would_have_led() -> None:
    """At 25 % the order is the reverse of the end: whatever is cut there would have led."""
    rows, rungs = study(peak, n=40, curve=lambda v, at: 0.4 - v / 10 if at == 25 else v)
    cut = set(range(20, 40))
    rows = [pruned_row(r.number, params=dict(r.params)) if r.number in cut else r for r in rows]
    rungs = [r for r in rungs if r.number not in cut or r.progress == 25]
    rows = [r._replace(last_progress=25) if r.number in cut else r for r in rows]
    found = [p for p in advise(spec(), rows, rungs) if p.kind == "pruner"]
    assert len(found) == 1 and found[0].numbers["progress"] == 25
    assert found[0].numbers["would_lead"] >= 1
    assert applied(found[0]).pruner.first > 25
    # The same with rungs that foretell the end: nothing to say.
    rows_, rungs_ = study(peak, n=40, curve=lambda v, at: v * at / 100)
    leader = sorted(rows_, key=lambda r: -(r.value or 0.0))
    bad = {r.number for r in leader[20:]}
    rows_ = [pruned_row(r.number, params=dict(r.params)) if r.number in bad else r for r in rows_]
    rungs_ = [r for r in rungs_ if r.number not in bad or r.progress == 25]
    assert "pruner" not in kinds(advise(spec(), rows_, rungs_))


def test_a_pruner_of_another_program_is_judged_by_the_steps_that_were_reported() -> None:
    """At step 2 the order is the reverse of the end; the end, step 9, is what was returned."""

    def of_optuna(curve: Curve) -> list[Advice]:
        rows, rungs = study(peak, n=40, phase=None, reason=None, checkpoint=None)
        cut = set(range(20, 40))
        steps = {25: 0, 50: 2, 75: 5, 100: 9}
        told = [
            rung_row(r.number, steps[r.progress], curve(r.metrics["accuracy"], r.progress), 1.0)
            for r in rungs
            if r.number not in cut or r.progress <= 50
        ]
        rows = [
            r._replace(state="PRUNED", value=None, last_progress=2) if r.number in cut else r
            for r in rows
        ]
        return advise(spec(), rows, told, study=study_row(managed=False))

    (piece,) = [p for p in of_optuna(lambda v, at: 0.4 - v / 10 if at <= 50 else v)]
    assert piece.kind == "pruner" and (piece.section, piece.line) == (None, None)
    assert piece.numbers["progress"] == 2 and piece.numbers["first"] == 5
    assert "of 20 trials cut" in piece.text and "cut none before step 5" in piece.text
    assert "n_warmup_steps" in piece.text and "step 2 with the end" in piece.text
    # Steps that foretell the end, and reports of something else than the value: nothing to say.
    assert of_optuna(lambda v, at: v * at / 100) == []
    assert of_optuna(lambda v, _: random.Random(v).random()) == []


def test_a_budget_that_is_left_unused() -> None:
    rows, rungs = study(peak)
    ended = study_row(ended="trials", max_trials=40, max_hours=10.0, active_seconds=3600.0)
    (piece,) = advise(spec(), rows, rungs, study=ended)
    assert piece.kind == "budget" and applied(piece).budget.trials == 160
    full = ended._replace(active_seconds=9 * 3600.0)
    assert advise(spec(), rows, rungs, study=full) == []


def test_beforehand_what_the_hours_hold() -> None:
    cost = Estimate(60.0, 60.0, 60.0, 60.0, 40, 2400.0, 5)
    found = beforehand(spec(budget={"trials": 40, "hours": 5 / 60}), cost)
    assert found[0].kind == "affordable" and found[0].numbers["affordable"] == 5
    assert applied(found[0]).budget.trials == 5
    assert beforehand(spec(), cost._replace(trials=40, affordable=None)) == []


@pytest.mark.parametrize(
    ("training", "space", "settings"),
    [
        ({"freeze": "backbone", "augment": "flip"}, {}, ["augment"]),
        ({"freeze": "backbone"}, {"augment": ["flip", "flip_crop"]}, ["augment"]),
        ({"freeze": "backbone", "augment": "flip", "mix": "mixup"}, {}, ["augment", "mix"]),
        ({"freeze": "backbone"}, {"augment": ["none", "flip"]}, None),
        ({"augment": "flip"}, {"freeze": ["none", "backbone"]}, None),
        ({"freeze": "head_first", "augment": "flip"}, {}, None),
        ({"freeze": "backbone"}, {}, None),
    ],
)
def test_beforehand_what_keeps_frozen_backbones_from_features(
    training: dict[str, Any], space: dict[str, Any], settings: list[str] | None
) -> None:
    cost = Estimate(60.0, 60.0, 60.0, 60.0, 40, 2400.0, None)
    asked = spec(training=training, space={**SPACE, **space})
    found = [piece for piece in beforehand(asked, cost) if piece.kind == "features"]
    assert [piece.numbers["settings"] for piece in found] == ([settings] if settings else [])
    kept = spec(training=training, space={**SPACE, **space}, resources={"feature_cache": False})
    assert "features" not in kinds(beforehand(kept, cost))
    if settings == ["augment"]:
        (piece,) = found
        assert (piece.section, piece.line) == ("training", "augment: none")
        assert piece.removes == (("space.augment",) if space else ())
        assert "training.augment: none would train the heads on features kept once" in piece.text
        assert f"without what {', '.join(space.get('augment', ['flip']))} may add" in piece.text


def test_it_is_drawn_with_its_line(draw_text: Draw) -> None:
    rows, rungs = study(peak)
    found = advise(spec(), rows, rungs, examples=100)
    text = draw_text(draw_advice(found), 80)
    assert "confirm:\n      seeds: 5" in text
    assert "and 1 more: `sft-tune advise`" in draw_text(draw_advice(found * 2, most=1), 80)
    assert advice_json(found)[0]["line"] == "seeds: 5"
