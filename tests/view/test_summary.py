from __future__ import annotations

import pytest

from sft_tune.view.finalists import standings
from sft_tune.view.summary import Choice, draw_summary, summarize
from tests.view.conftest import Draw
from tests.view.examples import DEFAULT, pruned_row, running_row, study_spec, trial_row
from tests.view.test_finalists import run

SPEC = study_spec(training={"learning_rate": 1e-4})


def test_the_summary_compares_the_best_with_the_default() -> None:
    rows = [
        trial_row(0, 0.80, params=DEFAULT, seconds=10.0),
        trial_row(1, 0.90, params={"learning_rate": 1e-3, "model.weights": "DEFAULT"}),
        pruned_row(2, value=0.99, seconds=2.0),
        trial_row(3, 0.95, reason="duplicate", duplicate_of=1, seconds=0.0, checkpoint=None),
        running_row(4),
    ]
    summary = summarize(SPEC, rows, 33.0)
    assert (summary.default, summary.best, summary.number) == (0.80, 0.90, 1)
    assert summary.gain == pytest.approx(0.10)
    assert summary.relative == pytest.approx(0.5)
    assert summary.params == (
        ("learning_rate", 1e-3, 1e-4),
        ("model.weights", "DEFAULT", "DEFAULT"),
    )
    assert summary.counts == {"completed": 2, "pruned": 1, "duplicate": 1}
    assert (summary.seconds, summary.active_seconds) == (22.0, 33.0)
    assert summary.checkpoint == "/runs/trial-00001/best.safetensors"


def test_a_loss_gains_by_falling() -> None:
    spec = study_spec(objective={"metric": "loss"}, training={"learning_rate": 1e-4})
    summary = summarize(spec, [trial_row(0, 0.8, params=DEFAULT), trial_row(1, 0.6)], 0.0)
    assert summary.number == 1
    assert summary.gain == pytest.approx(0.2)
    assert summary.relative == pytest.approx(0.25)


def test_a_score_that_goes_below_zero_has_no_share_of_errors() -> None:
    spec = study_spec(objective={"metric": "matthews"}, training={"learning_rate": 1e-4})
    summary = summarize(spec, [trial_row(0, -0.2, params=DEFAULT), trial_row(1, 0.6)], 0.0)
    assert summary.gain == pytest.approx(0.8)
    assert summary.relative is None


def test_a_perfect_default_leaves_nothing_to_gain() -> None:
    summary = summarize(SPEC, [trial_row(0, 1.0, params=DEFAULT), trial_row(1, 1.0)], 0.0)
    assert (summary.number, summary.gain, summary.relative) == (0, 0.0, None)


def test_each_choice_of_a_model_parameter_has_its_best() -> None:
    def with_weights(number: int, value: float, weights: str) -> object:
        return trial_row(number, value, params={"learning_rate": 1e-3, "model.weights": weights})

    rows = [
        with_weights(0, 0.8, "DEFAULT"),
        with_weights(1, 0.9, "DEFAULT"),
        with_weights(2, 0.3, "none"),
        trial_row(3, 0.2, params={**DEFAULT, "model.weights": "none"}),
        pruned_row(4, value=0.5, last_progress=30, params={"model.weights": "none"}),
    ]
    summary = summarize(SPEC, rows, 0.0)  # type: ignore[arg-type]
    assert summary.choices == (
        (
            "model.weights",
            (Choice("DEFAULT", None, 0.9, 1, 100, 2), Choice("none", 0.2, 0.5, 4, 30, 3)),
        ),
    )


def test_nothing_has_completed_yet(draw_text: Draw) -> None:
    summary = summarize(SPEC, [pruned_row(0)], 0.0)
    assert (summary.best, summary.number, summary.params) == (None, None, ())
    assert "no trial has completed yet" in draw_text(draw_summary(summary))
    assert summarize(SPEC, [], 0.0).counts == {}


def test_the_drawn_summary_leads_from_the_gain_to_the_next_commands(draw_text: Draw) -> None:
    rows = [
        trial_row(0, 0.80, params=DEFAULT),
        trial_row(1, 0.90, params={"learning_rate": 1e-3, "model.weights": "DEFAULT"}),
        trial_row(2, 0.90, reason="duplicate", duplicate_of=1, seconds=0.0, checkpoint=None),
    ]
    assert draw_text(draw_summary(summarize(SPEC, rows, 83.0))).splitlines() == [
        "s: accuracy 0.8000 → 0.9000  +0.1000  50% fewer errors, default to tuned, on",
        "validation",
        "",
        "best configuration (trial 1)",
        "                 tuned  default",
        "learning_rate    0.001   0.0001",
        "model.weights  DEFAULT     same",
        "",
        "accuracy by model.weights",
        "         default    best  trial  reached  of trials",
        "DEFAULT   0.8000  0.9000      1    100 %          2",
        "none           –       –      –        –          0",
        "",
        "trials   3: 2 completed, 1 duplicate",
        "reused   1 trial took the result of an equal configuration",
        "time     1m 23s, on the device 20s",
        "weights  /runs/trial-00001/best.safetensors",
        "",
        "next  sft-tune trials s       every trial in a table",
        "      sft-tune best s --yaml  settings for a study file",
        "      sft-tune confirm s      is the winner real?",
        "      sft-tune dashboard      Optuna Dashboard in the browser",
    ]


def test_a_heading_wider_than_its_table_stays_on_a_line(draw_text: Draw) -> None:
    spec = study_spec(space={"epochs": [1, 2]}, training={"epochs": 1})
    text = draw_text(draw_summary(summarize(spec, [trial_row(0, 0.8, params={"epochs": 2})], 1.0)))
    assert "\nbest configuration (trial 0)\n        tuned  default\n" in text


def test_the_best_value_has_its_interval(draw_text: Draw) -> None:
    rows = [trial_row(0, 0.80, params=DEFAULT), trial_row(1, 0.90)]
    summary = summarize(SPEC, rows, 1.0, 358)
    assert (summary.examples, summary.in_noise) == (358, False)
    assert draw_text(draw_summary(summary), 120).splitlines()[:2] == [
        "s: accuracy 0.8000 → 0.9000  +0.1000  50% fewer errors, default to tuned, on validation",
        "measured on 358 validation examples: 0.8646 to 0.9270 with 95 % confidence",
    ]


def test_a_gain_of_one_example_is_not_celebrated(draw_text: Draw) -> None:
    rows = [trial_row(0, 48 / 60, params=DEFAULT), trial_row(1, 49 / 60)]
    summary = summarize(SPEC, rows, 1.0, 60)
    assert summary.in_noise
    assert draw_text(draw_summary(summary), 120).splitlines()[:2] == [
        "s: accuracy 0.8000 → 0.8167  +0.0167  within the noise of 60 validation examples; confirm "
        "before believing",
        "measured on 60 validation examples: 0.7008 to 0.8944 with 95 % confidence",
    ]


def test_after_a_confirmation_the_leader_is_named_and_confirm_is_not_next(draw_text: Draw) -> None:
    rows = [trial_row(0, 0.80, params=DEFAULT), trial_row(1, 0.90), trial_row(2, 0.89)]
    scores = {0: 0.80, 1: 0.84, 2: 0.88}
    runs = [run(n, seed, v + seed / 100) for n, v in scores.items() for seed in range(3)]
    found = standings(SPEC, rows, runs)
    text = draw_text(draw_summary(summarize(SPEC, rows, 1.0, 358, found), " --storage x.db"), 140)
    assert "over 3 fresh seeds trial 2 leads with 0.8900 ±" in text
    assert "trial 1 has 0.8500 ±" in text
    assert "95 % confidence" not in text and "sft-tune confirm" not in text
    assert "sft-tune export s DIR --trial 2 --storage x.db" in text
    other = standings(SPEC, rows, [one for one in runs if one.number != 1])
    assert "sft-tune confirm" in draw_text(draw_summary(summarize(SPEC, rows, 1.0, 358, other)))
    by_itself = study_spec(confirm={"top": 2}, training={"learning_rate": 1e-4})
    assert "sft-tune confirm" not in draw_text(draw_summary(summarize(by_itself, rows, 1.0, 358)))


def test_of_other_metrics_only_the_number_of_examples_is_told(draw_text: Draw) -> None:
    spec = study_spec(objective={"metric": "f1_macro"}, training={"learning_rate": 1e-4})
    rows = [trial_row(0, 0.80, params=DEFAULT), trial_row(1, 0.81)]
    summary = summarize(spec, rows, 1.0, 60)
    assert not summary.in_noise
    assert draw_text(draw_summary(summary), 120).splitlines()[1] == (
        "measured on 60 validation examples"
    )


def test_a_best_that_is_the_default_is_said_so(draw_text: Draw) -> None:
    summary = summarize(SPEC, [trial_row(0, 0.8, params=DEFAULT)], 0.0)
    assert "nothing tried beats the default" in draw_text(draw_summary(summary), 120)
    unknown = summarize(SPEC, [trial_row(1, 0.8)], 0.0)
    assert "accuracy 0.8000 with trial 1" in draw_text(draw_summary(unknown))


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_summary_fits_every_terminal(draw_text: Draw, width: int) -> None:
    rows = [trial_row(0, 0.80, params=DEFAULT), trial_row(1, 0.90)]
    assert draw_text(draw_summary(summarize(SPEC, rows, 83.0)), width)


def test_the_next_commands_find_a_database_that_is_not_the_usual_one(draw_text: Draw) -> None:
    text = draw_text(
        draw_summary(summarize(SPEC, [trial_row(0, 0.8)], 1.0), " --storage x.db"), 120
    )
    for command in (
        "trials s --storage x.db",
        "best s --storage x.db --yaml",
        "dashboard --storage",
    ):
        assert f"sft-tune {command}" in text
