# ruff: noqa: E501  (one row a rule: wrapped, the tables could not be compared by eye)
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from sft_tune.errors import Problem, StudyFileError, UserError
from sft_tune.spec.load import load_study, parse_study
from sft_tune.spec.study import StudySpec
from sft_tune.spec.tasks import Task

Parse = Callable[..., StudySpec]
Problems = Callable[..., list[Problem]]

STUDY = """\
name: first
task: image-classification
data:
  source: sklearn:digits
model:
  name: builtin:convnet
  weights: none
training:
  learning_rate: 1e-3
space:
  learning_rate: {low: 1e-4, high: 1e-2, log: true}
  schedule: [cosine, exponential]
  decay_factor: {values: [0.5, 0.9], when: {schedule: exponential}}
"""
NAME = "Name of the study, unique in its database: letters, digits, '.', '_', '-'."
NAMES = ", ".join(get_args(Task))
TASKS = f"must be one of {NAMES}, or python:module:function"
RANGE = (
    "must be a list of values or a range {low: ..., high: ...}; a fixed value belongs in `training`"
)

SINGLE: list[tuple[dict[str, Any], str, str, str | None]] = [
    # what changes, place, rule with remedy, value shown
    ({"name": "my study"}, "name", f"is not of the right form: {NAME}", "'my study'"),
    ({"name": ""}, "name", f"is not of the right form: {NAME}", "''"),
    ({"name": 5}, "name", "must be text; put it in quotes", "5"),
    ({"task": "text-clasification"}, "task", f"{TASKS}; did you mean text-classification?", "'text-clasification'"),
    ({"seed": -1}, "seed", "must be at least 0 and below 2147483648", "-1"),
    ({"seed": 2**70}, "seed", "must be below 2^63; write a smaller number", None),
    ({"epochs": 3}, "epochs", "unknown key here; it belongs in `training`", None),
    ({"serch": {}}, "serch", "unknown key; see `sft-tune schema`", None),
    ({"spaces": {}}, "spaces", "unknown key; did you mean space?", None),
    ({"training": {"lr": 1}}, "training.lr", "unknown key; did you mean learning_rate?", None),
    ({"training": {"Batch-Size": 1}}, "training.Batch-Size", "unknown key; did you mean batch_size?", None),
    ({"training": {"dropout": 0.1}}, "training.dropout", "unknown key here; it belongs in `model`", None),
    ({"training": {"trials": 3}}, "training.trials", "unknown key here; it belongs in `budget`", None),
    ({"objective": {"qqq": 1}}, "objective.qqq", "unknown key; use one of metric, direction, rungs, evaluate, beams, max_new_tokens", None),
    ({"training": {"epochs": 3.5}}, "training.epochs", "must be a whole number; round it", "3.5"),
    ({"training": {"epochs": 3.0}}, "training.epochs", "must be a whole number; write 3 without a point", "3"),
    ({"training": {"warmup": "10%"}}, "training.warmup", "must be a number; write 0.1", "'10%'"),
    ({"training": {"warmup": 10}}, "training.warmup", "must be at least 0 and below 1; if that is percent, write 0.1", "10"),
    ({"training": {"warmup": 500}}, "training.warmup", "must be at least 0 and below 1", "500"),
    ({"sampler": "random"}, "sampler", "must be a mapping of settings; write {name: random}", "'random'"),
    ({"budget": 30}, "budget", "must be a mapping of settings; write {trials: 30}", "30"),
    ({"training": {"epochs": True}}, "training.epochs", "must be a whole number", "true"),
    ({"training": {"epochs": 0}}, "training.epochs", "must be at least 1 and at most 10000", "0"),
    ({"training": {"learning_rate": "1e-4"}}, "training.learning_rate", "must be a number; remove the quotes", "'1e-4'"),
    ({"training": {"learning_rate": "fast"}}, "training.learning_rate", "must be a number", "'fast'"),
    ({"training": {"learning_rate": False}}, "training.learning_rate", "must be a number", "false"),
    ({"training": {"weight_decay": None}}, "training.weight_decay", "must be a number; or remove the line to have the default", "null"),
    ({"training": {"weight_decay": float("nan")}}, "training.weight_decay", "must be a finite number", "nan"),
    ({"training": {"clip_norm": "nan"}}, "training.clip_norm", "must be a finite number", "'nan'"),
    ({"training": {"epochs": "inf"}}, "training.epochs", "must be a whole number", "'inf'"),
    ({"space": {"weight_decay": [float("nan"), 0.1]}}, "space.weight_decay[0]", "must be a finite number", "nan"),
    ({"space": {"weight_decay": ["-inf", 0.1]}}, "space.weight_decay[0]", "must be a finite number", "'-inf'"),
    ({"space": {"weight_decay": {"low": 0.1, "high": float("inf")}}}, "space.weight_decay.high", "must be a finite number", "inf"),
    ({"training": {"weight_decay": [0.1, 0.2]}}, "training.weight_decay", "must be a number; what is searched stands in `space`", "[0.1, 0.2]"),
    ({"training": {"weight_decay": {"low": 0, "high": 1}}}, "training.weight_decay", "must be a number; what is searched stands in `space`", "{low: 0, high: 1}"),
    ({"training": {"clip_norm": 0}}, "training.clip_norm", "must be above 0", "0"),
    ({"training": {"clip_norm": "off"}}, "training.clip_norm", "must be a number or null", "'off'"),
    ({"training": {"warmup": 1}}, "training.warmup", "must be at least 0 and below 1", "1"),
    ({"training": {"optimizer": "sdg"}}, "training.optimizer", "must be one of adamw, adam, sgd, adafactor, lion, muon; did you mean sgd?", "'sdg'"),
    ({"training": [1]}, "training", "must be a mapping of settings", "[1]"),
    ({"objective": "accuracy"}, "objective", "must be a mapping of settings; write {metric: accuracy}", "'accuracy'"),
    ({"data": {"classes": [1, True]}}, "data.classes[1]", "must be text or a whole number; put it in quotes", "true"),
    ({"data": {"classes": 5}}, "data.classes", "must be a list of texts or whole numbers or null", "5"),
    ({"data": {"normalize": {"mean": [0.5]}}}, "data.normalize.std", "is required: Standard deviation per channel.", None),
    ({"data": {"normalize": {"mean": [0.5], "std": [0]}}}, "data.normalize.std[0]", "must be above 0", "0"),
    ({"data": {"normalize": {"mean": [1], "std": [1], "dev": 2}}}, "data.normalize.dev", "unknown key; use one of mean, std", None),
    ({"resources": {"devices": "gpu"}}, "resources.devices", "must be one of auto, cpu or a list of whole numbers; did you mean cpu?", "'gpu'"),
    ({"objective": {"rungs": 500}}, "objective.rungs", "must be auto or a whole number, at least 1 and at most 100", "500"),
    ({"resources": {"devices": [0, "a"]}}, "resources.devices[1]", "must be a whole number", "'a'"),
    ({"sampler": {"enqueue": [5]}}, "sampler.enqueue[0]", "must be a mapping of settings", "5"),
    ({"sampler": {"enqueue": [{"learning_rate": [1]}]}}, "sampler.enqueue[0].learning_rate", "must be a single value (number, text, true, false or null)", "[1]"),
    ({"budget": {"hours": float("inf")}}, "budget.hours", "must be a finite number", "inf"),
    ({"space": 5}, "space", "must be a mapping of settings", "5"),
    ({"space": {"warmup": 0.1}}, "space.warmup", RANGE, "0.1"),
    ({"space": {"warmup": None}}, "space.warmup", RANGE, "null"),
    ({"space": {"warmup": []}}, "space.warmup", "a list of values needs at least one; or fix it in `training`", "[]"),
    ({"space": {"warmup": [[0.1]]}}, "space.warmup[0]", "must be a single value (number, text, true, false or null)", "[0.1]"),
    ({"space": {"warmup": {}}}, "space.warmup", "give a list of values, or a range with both `low` and `high`", "{}"),
    ({"space": {"warmup": {"low": 0.1}}}, "space.warmup", "give a list of values, or a range with both `low` and `high`", "{low: 0.1}"),
    ({"space": {"warmup": {"low": 0.2, "high": 0.1}}}, "space.warmup", "`low` must not exceed `high`; swap them", "{low: 0.2, high: 0.1}"),
    ({"space": {"warmup": {"low": 0, "high": 0.1, "log": True}}}, "space.warmup", "a logarithmic range needs `low` above 0; raise `low` or drop `log`", "{low: 0, high: 0.1, log: true}"),
    ({"space": {"warmup": {"low": "0", "high": 0.1}}}, "space.warmup.low", "must be a number or null; remove the quotes", "'0'"),
    ({"space": {"warmup": {"low": 0, "high": 0.1, "step": 0}}}, "space.warmup.step", "must be above 0", "0"),
    ({"space": {"warmup": {"low": 0, "high": 0.1, "log": "yes"}}}, "space.warmup.log", "must be true or false", "'yes'"),
    ({"space": {"warmup": {"min": 0, "low": 0, "high": 0.5}}}, "space.warmup.min", "unknown key; did you mean low?", None),
    ({"space": {"warmup": {"values": [0.1], "low": 0}}}, "space.warmup", "give either a list of values or a range, not both", "{values: [0.1], low: 0}"),
    ({"data": {"train": b"x"}}, "data.train", "must be text, a number, true, false or null, not a bytes", None),
    ({"data": {"train": "a\0b"}}, "data.train", "must not hold the character NUL; remove it", None),
    ({"data": {"train": "\ud800"}}, "data.train", "must be text in Unicode; remove the lone surrogate", None),
    ({"training": {1: 2}}, "training", "a key is text, not int; put it in quotes", None),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "place", "rule", "value"), SINGLE)
def test_a_setting_that_breaks_a_rule_is_told_with_place_value_and_remedy(
    problems: Problems, changes: dict[str, Any], place: str, rule: str, value: str | None
) -> None:
    assert problems(**changes) == [Problem(place, rule, value)]


@pytest.mark.parametrize(
    ("missing", "rule"),
    [
        ("name", f"is required: {NAME}"),
        ("task", f"is required: {StudySpec.model_fields['task'].description}"),
    ],
)
def test_a_missing_key_is_told_with_what_it_is(tmp_path: Path, missing: str, rule: str) -> None:
    data: dict[str, Any] = {
        "name": "x",
        "task": "image-classification",
        "data": {"source": "sklearn:digits"},
        "model": {"name": "builtin:convnet", "weights": "none"},
        "budget": {"trials": 1},
    }
    del data[missing]
    with pytest.raises(StudyFileError) as caught:
        parse_study(data, root=tmp_path)
    assert caught.value.problems == [Problem(missing, rule)]


def test_an_empty_mapping_lacks_every_required_key(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError) as caught:
        parse_study({}, root=tmp_path)
    places = {problem.path for problem in caught.value.problems}
    assert places == {"name", "task", "data.source", "model.name", "space"}


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = STUDY.replace("task: image", "task: imag").replace("1e-3", "-1")
    text = text.replace("when: {schedule", "when: {shedule").replace("weights: none", "weihts: x")
    (tmp_path / "s.yaml").write_text(text + "pruner: {reduction: 1}\nobjective: {direction: up}\n")
    with pytest.raises(StudyFileError) as caught:
        load_study("s.yaml")
    assert [(p.line, p.path) for p in caught.value.problems] == [
        (2, "task"),
        (7, "model.weihts"),
        (9, "training.learning_rate"),
        (13, "space.decay_factor.when.shedule"),
        (14, "pruner.reduction"),
        (15, "objective.direction"),
    ]
    assert str(caught.value).startswith("s.yaml: 6 problems\n  line 2, task: must be one of")


def test_broken_sections_do_not_hide_contradictions_of_others(problems: Problems) -> None:
    found = problems(
        training={"epochs": "three", "learning_rate": 1.0},
        objective={"metric": "accuracy"},
        budget={"target": 80, "trials": 0},
        task="imge",
    )
    assert {problem.path for problem in found} == {
        "training.epochs",
        "training.learning_rate",  # outside of the space
        "budget.target",
        "budget.trials",
        "task",
    }


def test_a_broken_setting_makes_up_no_contradictions(problems: Problems) -> None:
    found = problems(
        task="text",  # neither an image nor a text model can be judged
        sampler={"name": "gird"},  # neither can an empty space
        space={"learning_rate": 1e-3, "decay_factor": [0.5]},
        training={"schedule": "exponentially"},
        model={"weights": "x.pt"},
    )
    assert {problem.path for problem in found} == {
        "task",
        "sampler.name",
        "space.learning_rate",
        "training.schedule",
        "model.weights",
    }


def test_a_problem_names_the_line_of_its_value_in_yaml_and_json(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        STUDY.replace("[cosine,", "\n    - cosin\n    -").replace("]\n", "\n", 1)
    )
    with pytest.raises(StudyFileError) as caught:
        load_study(tmp_path / "s.yaml")
    assert [(p.line, p.path) for p in caught.value.problems] == [(13, "space.schedule[0]")]
    (tmp_path / "s.json").write_text('{"name": "x",\n\t"task":\n\n"y", "data": {\n"source": 1}}')
    with pytest.raises(StudyFileError) as caught:
        load_study(tmp_path / "s.json")
    lines = {problem.path: problem.line for problem in caught.value.problems}
    assert lines == {"task": 2, "data.source": 5, "model.name": None, "space": None}


def test_a_missing_key_is_told_with_the_line_of_its_section(tmp_path: Path) -> None:
    text = STUDY.replace("digits\n", "digits\n  normalize:\n    mean: [0.5]\n")
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(StudyFileError) as caught:
        load_study("s.yaml")
    assert [(p.line, p.path) for p in caught.value.problems] == [(5, "data.normalize.std")]


def test_the_same_study_in_yaml_json_and_toml_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("\ufeff" + STUDY)
    (tmp_path / "a.json").write_text(
        """\ufeff{"name": "first", "task": "image-classification", "data": {"source": "sklearn:digits"},
        "model": {"name": "builtin:convnet", "weights": "none"}, "training": {"learning_rate": 1e-3},
        "space": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": true},
        "schedule": ["cosine", "exponential"],
        "decay_factor": {"values": [0.5, 0.9], "when": {"schedule": ["exponential"]}}}}"""
    )
    (tmp_path / "a.toml").write_text(
        """name = "first"
task = "image-classification"
data.source = "sklearn:digits"
model = {name = "builtin:convnet", weights = "none"}
training.learning_rate = 1e-3
[space]
learning_rate = {low = 1e-4, high = 1e-2, log = true}
schedule = ["cosine", "exponential"]
decay_factor = {values = [0.5, 0.9], when = {schedule = "exponential"}}
"""
    )
    specs = [load_study(tmp_path / f"a.{suffix}").spec for suffix in ("yaml", "json", "toml")]
    assert specs[0] == specs[1] == specs[2]
    assert specs[0].space["decay_factor"].when == {"schedule": ("exponential",)}


def test_a_loaded_study_knows_its_text_and_its_place(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/s.yml").write_text(STUDY)
    loaded = load_study("sub/../sub/s.yml")
    assert loaded.text == STUDY
    assert loaded.path == tmp_path / "sub/s.yml"
    assert loaded.spec.training.learning_rate == 1e-3


def test_sections_with_nothing_under_them_have_their_defaults(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(STUDY + "objective:\nsampler: # none yet\nbudget:\n")
    spec = load_study("s.yaml").spec
    assert (spec.objective.metric, spec.sampler.name) == ("accuracy", "tpe")


def test_integers_in_the_space_of_a_real_setting_are_reals(parse: Parse) -> None:
    spec = parse(
        space={
            "clip_norm": {"low": 1, "high": 10, "step": 3},
            "weight_decay": [0, 1],
            "epochs": {"low": 1, "high": 10},
        }
    )
    assert not spec.space["clip_norm"].is_integer
    assert [type(value) for value in spec.space["weight_decay"].values or ()] == [float, float]
    assert spec.space["epochs"].is_integer


def test_a_program_may_pass_tuples_and_dump_a_study_back(parse: Parse, tmp_path: Path) -> None:
    spec = parse(space={"optimizer": ("adamw", "sgd")}, data={"classes": (5, "b")})
    assert parse_study(spec.model_dump(exclude_unset=True), root=tmp_path) == spec


def test_what_is_no_mapping_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a study is a mapping of sections, not a list"):
        parse_study([1], root=tmp_path)  # type: ignore[arg-type]


def test_a_mapping_that_holds_itself_is_refused(problems: Problems) -> None:
    endless: dict[str, Any] = {}
    endless["epochs"] = endless
    assert problems(training=endless) == [
        Problem("training", "holds too much, or itself; a study has five levels")
    ]


def test_passwords_are_never_printed(problems: Problems) -> None:
    found = problems(storage={"url": "oracle://me:se:cr@t@host/db?password=hidden"})
    assert found == [
        Problem(
            "storage.url",
            "must be a URL: sqlite:///file.db, postgresql://... or mysql://...",
            "'oracle://me:***@host/db?password=***'",
        )
    ]


def test_reading_studies_imports_no_heavy_library() -> None:
    code = (
        "import sys, sft_tune.spec.load\n"
        "bad = {'torch', 'optuna', 'sqlalchemy', 'numpy', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
