from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from sft_tune.spec.config import assemble, default_params
from sft_tune.store.finalist_rows import FinalistRow
from sft_tune.store.records import StudyRecord
from sft_tune.store.rows import EvaluationRow
from sft_tune.view.model_card import ModelCard, make_card
from sft_tune.view.model_card_markdown import card_markdown
from tests.view.examples import DEFAULT, study_spec, trial_row

SPEC = study_spec(budget={"trials": 12, "hours": 2})
RECORD = StudyRecord(
    id=1,
    name="s",
    task="image-classification",
    optuna_study_id=1,
    optuna_gone=False,
    spec=SPEC,
    spec_hash="",
    text="",
    path=None,
    root=None,
    versions={"torch": "2.14.0"},
    metric="accuracy",
    direction="maximize",
    max_trials=12,
    max_hours=2.0,
    target=None,
    issued=3,
    active_seconds=95.0,
    created=datetime(2026, 3, 1, tzinfo=UTC),
    updated=datetime(2026, 3, 1, tzinfo=UTC),
    facts={},
    artifacts="/runs",
    ended="trials",
)
BEST = {"learning_rate": 0.003, "model.weights": "DEFAULT"}
ROWS = [
    trial_row(0, 0.8, params=DEFAULT),
    trial_row(1, 0.9, params=BEST, best_progress=80),
    trial_row(2, 0.85, state="PRUNED", reason="pruned"),
]


def exported(**changes: Any) -> dict[str, Any]:
    config = assemble(SPEC, BEST, 1).model_dump(mode="json")
    return {
        "study": "s",
        "trial": 1,
        "weights": "trial",
        "validation": {"loss": 0.31, "accuracy": 0.9},
        "ingredients": [],
        "tried": [],
        "onnx": False,
        "config": config,
        "library": "torchvision",
        "outputs": "classes",
        "labels": ["cat", "dog"],
        "parameters": 11_200_000,
        "image_size": [32, 24],
        "max_length": None,
        "call": {},
        "data": {
            "examples": {"train": 400, "validation": 100, "test": 50},
            "validation_from": "source",
        },
        "files": ["README.md", "model.safetensors", "study.yaml"],
        **changes,
    }


def rung(progress: int, train_loss: float) -> EvaluationRow:
    return EvaluationRow(1, progress, 1.0, 10, train_loss, 0.3, "{}", 0.1, 1.0, 5.0)


def run_of(number: int, seed: int, value: float, test: float) -> FinalistRow:
    empty = dict.fromkeys(FinalistRow._fields)
    known = {"number": number, "seed": seed, "phase": "ended", "reason": "completed"}
    metrics = {"value": value, "metrics": {"accuracy": value}, "test_metrics": {"accuracy": test}}
    return FinalistRow(**{**empty, "attempts": 1, **known, **metrics})  # type: ignore[arg-type]


def card(runs: list[FinalistRow] | None = None, **changes: Any) -> ModelCard:
    rungs = [rung(40, 0.7), rung(80, 0.25), rung(100, 0.2)]
    return make_card(RECORD, ROWS, rungs, runs or [], exported(**changes))


def test_each_split_has_its_numbers_and_what_they_are_of() -> None:
    train, validation, test = card().splits
    assert (train.split, train.examples, train.metrics) == ("train", 400, {"loss": "0.2500"})
    assert validation.metrics == {"loss": "0.3100", "accuracy": "0.9000"}
    assert validation.note == "measured with these files"
    assert (test.examples, test.metrics) == (50, {})
    assert "sft-tune confirm" in test.note


def test_a_confirmed_trial_shows_its_test_score_over_fresh_seeds() -> None:
    runs = [run_of(1, seed, 0.88 + seed / 100, 0.86 + seed / 100) for seed in range(3)]
    runs += [run_of(0, seed, 0.70 + seed / 100, 0.70) for seed in range(3)]
    found = card(runs)
    test = found.splits[2]
    assert test.metrics["accuracy"].startswith("0.8700 ± ")
    assert test.note == "this configuration over 3 fresh seeds, not these weights"
    assert "Confirmed: yes: 0.8900 ± " in card_markdown(found)


def test_only_the_winner_of_the_search_is_confirmed() -> None:
    runs = [run_of(1, seed, 0.88 + seed / 100, 0.86) for seed in range(3)]
    runs += [run_of(0, seed, 0.70 + seed / 100, 0.71 + seed / 100) for seed in range(3)]
    config = assemble(SPEC, DEFAULT, 0).model_dump(mode="json")
    found = card(runs, trial=0, config=config, validation={"loss": 0.5, "accuracy": 0.8})
    assert found.confirmed.startswith("no; of trial 1, which won the search, it is known: yes: ")
    assert found.splits[2].metrics["accuracy"].startswith("0.7200 ± ")


def test_a_refit_has_no_validation_score() -> None:
    found = card(weights="refit", validation={})
    assert [(row.split, row.examples, row.metrics) for row in found.splits[:1]] == [
        ("train + validation", 500, {})
    ]
    text = card_markdown(found)
    assert "# s: trial 1, trained on train and validation" in text
    assert "That trains on train alone; these weights were trained on validation too." in text
    assert "with 95 % confidence" not in text


def test_a_soup_says_what_went_in_and_what_did_not() -> None:
    tried = [
        {"number": 0, "value": 0.91, "why": None},
        {"number": 4, "value": 0.7, "why": "validation does not gain"},
        {"number": 5, "value": None, "why": "another pretrained model"},
    ]
    scores = {"loss": 0.3, "accuracy": 0.91}
    found = card(weights="soup", ingredients=[1, 0], tried=tried, validation=scores)
    text = card_markdown(found)
    assert "# s: the average of 2 trials" in text
    assert "(Wortsman et al. 2022) of trials 1, 0. Trial 0 (accuracy 0.9100): added." in text
    assert "Trial 4 (accuracy 0.7000): validation does not gain." in text
    assert "Trial 5: another pretrained model." in text
    assert "it chose what went into the average too" in text
    assert "| this one (the average of 2 trials) | 0.9100 |" in text
    alone = card_markdown(card(weights="soup", ingredients=[1], tried=tried[1:]))
    assert "# s: trial 1\n" in alone
    assert "No average was better on validation" in alone


def test_the_card_is_a_page_that_says_it_all() -> None:
    text = card_markdown(card())
    for part in (
        "---\nlibrary_name: torchvision\npipeline_tag: image-classification\n",
        "builtin:convnet (11.2M parameters), fine-tuned for image-classification with 2 labels",
        "python load_model.py photo.jpg",
        "| split | examples | loss | accuracy |",
        "3 trials (2 completed, 1 pruned): sampler tpe, pruner asha, seed 0; budget 12 trials, "
        "2 hours; 1m 35s in all, 30s on the device.",
        "| default configuration | 0.8000 |",
        "| best of the search (trial 1) | 0.9000 |",
        "Confirmed: no; `sft-tune confirm s` trains it again over fresh seeds.",
        "| `learning_rate` | 0.003 | 0.0001 |",
        "| `model.weights` | DEFAULT | same |",
        "`sklearn:digits`, images of 24x32 pixels.",
        "| `model.safetensors` | the weights |",
        f"sft-tune train study.yaml --seed {exported()['config']['seed']}",
        "torch 2.14.0.",
    ):
        assert part in text
    assert default_params(SPEC) == DEFAULT


def test_the_card_says_that_the_search_weighed_cost() -> None:
    spec = study_spec(space={"epochs": [2, 4]}, budget={"hours": 2})
    rows = [trial_row(0, 0.9, params={"epochs": 2})]
    record = replace(RECORD, spec=spec, max_trials=None)
    assert "sampler tpe (cost-aware), pruner asha" in card_markdown(
        make_card(record, rows, [rung(100, 0.2)], [], exported(trial=0))
    )


@pytest.mark.parametrize(
    ("changes", "task", "said"),
    [
        ({"library": "transformers"}, "text-classification", 'AutoTokenizer.from_pretrained(".")'),
        (
            {"library": "transformers", "call": {"interpolate_pos_encoding": True}},
            "image-classification",
            "model(**inputs, interpolate_pos_encoding=True)",
        ),
        ({"onnx": True}, "image-classification", "onnxruntime.InferenceSession"),
        (
            {"outputs": "tags", "library": "transformers"},
            "token-classification",
            "print(word, model.config.id2label[",
        ),
        ({"outputs": "number"}, "image-regression", "print(float(logits[0, 0]))"),
        (
            {"outputs": "labels", "library": "transformers"},
            "text-classification",
            "[model.config.id2label[i] for i, logit in enumerate(logits[0]) if logit > 0]",
        ),
    ],
)
def test_the_card_shows_the_code_that_uses_the_files(
    changes: dict[str, Any], task: str, said: str
) -> None:
    text = card_markdown(card(**changes)._replace(task=task))
    assert said in text
    for block in text.split("```python\n")[1:]:
        compile(block.partition("```")[0], "card", "exec")


def test_a_trial_that_is_not_the_best_is_named_beside_it() -> None:
    config = assemble(SPEC, DEFAULT, 0).model_dump(mode="json")
    found = card(trial=0, config=config, validation={"loss": 0.5, "accuracy": 0.8})
    assert "| this one (trial 0) | 0.8000 |" in card_markdown(found)
