from __future__ import annotations

from sft_tune.view.glance import glance, glance_html
from sft_tune.view.report import report_html
from tests.view.examples import DEFAULT, pruned_row, trial_row
from tests.view.materials import material
from tests.view.test_finalists import run


def test_a_study_is_told_in_sentences() -> None:
    rows = [trial_row(0, 0.5, params=DEFAULT), trial_row(1, 0.9), pruned_row(2)]
    told = glance(material(rows))
    assert told.headline == (
        "Trial 1 reached accuracy 0.9000 on validation; the default configuration 0.5000 (+0.4000)."
    )
    assert told.sure.startswith("Measured on 100 validation examples: 0.8256 to 0.9448")
    assert told.effort == (
        "3 trials: 2 completed, 1 pruned; 30s on the device, 2m 05s of the study's time."
    )


def test_a_gain_within_noise_is_said_to_be() -> None:
    rows = [trial_row(0, 0.88, params=DEFAULT), trial_row(1, 0.9)]
    assert "confirm before believing the gain" in glance(material(rows)).sure


def test_after_a_confirmation_the_leader_is_told() -> None:
    rows = [trial_row(0, 0.5, params=DEFAULT), trial_row(1, 0.9), trial_row(2, 0.89)]
    scores = {1: 0.84, 2: 0.88}
    runs = [run(n, seed, v + seed / 100) for n, v in scores.items() for seed in range(3)]
    study = material(rows)._replace(runs=runs)
    told = glance(study)
    assert "trial 2 leads with 0.8900" in told.sure and "trial 1 has 0.8500" in told.sure
    assert "95 % confidence" not in told.sure
    assert "<b>0.8900</b><span>over 3 fresh seeds, trial 2</span>" in report_html(study, {})


def test_a_notebook_gets_text_and_nothing_to_run() -> None:
    rows = [trial_row(0, 0.5, params={"<script>": "<b>"})]
    text = glance_html(material(rows, managed=False, name="<i>"))
    assert "<script>" not in text
    assert "&lt;script&gt;=&lt;b&gt;" in text
    assert len(text) < 2000
