"""Studies of a training function of one's own: free names, and how a function is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sft_tune
from sft_tune.errors import StudyFileError, UserError
from sft_tune.spec.config import assemble, default_params
from sft_tune.spec.differences import differences
from sft_tune.spec.dump import dump_training
from sft_tune.spec.function_task import reference, study_of
from sft_tune.spec.load import parse_study
from sft_tune.spec.study import StudySpec


def mapping(**sections: Any) -> dict[str, Any]:
    return {
        "name": "mine",
        "task": "python:mine.py:train",
        "arguments": {"depth": 3, "text": "fixed"},
        "space": {"depth": {"low": 1, "high": 9}, "dropout": [0.1, "none"], "freeze": [1, 2]},
        "objective": {"metric": "r2@5", "direction": "maximize"},
        **sections,
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text("def train(report): ...")
    return tmp_path


def test_names_are_free_and_the_path_is_absolute(root: Path) -> None:
    spec = parse_study(mapping(), root=root)
    assert spec.task == f"python:{root}/mine.py:train"
    assert default_params(spec) == {"depth": 3, "dropout": 0.1, "freeze": 1}
    config = assemble(spec, {"depth": 5, "dropout": "none", "freeze": 2}, 4)
    assert config.arguments == {"depth": 5, "dropout": "none", "freeze": 2, "text": "fixed"}
    assert "depth: 5" in dump_training(config) and "model" not in dump_training(config)
    again = parse_study(spec.model_dump(mode="json", exclude_unset=True), root=root)
    assert again == spec == StudySpec.model_validate_json(spec.model_dump_json())


def test_another_default_of_what_is_searched_may_be_asked_for(root: Path) -> None:
    old = parse_study(mapping(), root=root)
    new = parse_study(mapping(arguments={"depth": 4, "text": "fixed"}), root=root)
    assert differences(old, new) == ([], ["arguments.depth: 3 -> 4"])
    new = parse_study(mapping(arguments={"depth": 3, "text": "other"}), root=root)
    assert differences(old, new)[0] == ["arguments.text: 'fixed' -> 'other'"]


@pytest.mark.parametrize(
    ("sections", "path", "rule"),
    [
        ({"resources": {"stack": 2}}, "resources.stack", "a function of yours trains one trial"),
        ({"task": "python:none.py:train"}, "task", "no such Python file"),
        ({"task": "python:train"}, "task", "must be python:module:function"),
        ({"task": "pyton:mine.py:train"}, "task", "or python:module:function"),
        ({"data": {"source": "x.csv"}}, "data", "reads `arguments` alone; remove"),
        ({"model": {"name": "builtin:convnet"}}, "model", "reads `arguments` alone; remove"),
        ({"training": {"epochs": 3}}, "training", "reads `arguments` alone; remove"),
        ({"objective": {"metric": "r2"}}, "objective.direction", "must say whether r2"),
        ({"objective": {"metric": "r2", "evaluate": 5}}, "objective.evaluate", "measures itself"),
        ({"arguments": {"depth": 30}}, "arguments.depth", "outside of the space; choose from 1"),
        ({"space": {"a b": [1, 2]}}, "space.a b", "must be a name like"),
    ],
)
def test_what_is_wrong_is_named(root: Path, sections: dict[str, Any], path: str, rule: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        parse_study(mapping(**sections), root=root)
    found = {problem.path: problem.rule for problem in caught.value.problems}
    assert rule in found.get(path, ""), found


def test_the_built_in_tasks_have_their_own_settings(root: Path) -> None:
    given = mapping(
        task="image-classification",
        data={"source": "sklearn:digits"},
        model={"name": "builtin:convnet", "weights": "none"},
        space={"learning_rate": [1e-3, 1e-2]},
        objective={"metric": "acuracy"},
    )
    with pytest.raises(StudyFileError) as caught:
        parse_study(given, root=root)
    found = {problem.path: problem.rule for problem in caught.value.problems}
    assert "remove them" in found["arguments"]
    assert "did you mean accuracy?" in found["objective.metric"]


def top_level(report: Any) -> None:
    """A function that a worker can find."""


def test_a_function_of_a_package_is_named_by_its_module() -> None:
    assert reference(top_level) == f"python:{__name__}:top_level"


def test_a_function_that_no_worker_finds_is_refused() -> None:
    def inner() -> None: ...

    for function in (inner, lambda: None):
        with pytest.raises(UserError, match="cannot be imported by a worker"):
            reference(function)
    typed: dict[str, Any] = {"__name__": "__main__"}
    exec("def typed(): ...", typed)
    with pytest.raises(UserError, match="is in no file"):
        reference(typed["typed"])


def test_the_decorator_keeps_what_tune_needs() -> None:
    marked = sft_tune.task(
        space={"a": [1, 2]}, metric="score", direction="minimize", name="given",
        pruner={"name": "none"},
    )(top_level)  # fmt: skip
    assert marked is top_level
    assert study_of(top_level, {}) == {
        "name": "given",
        "task": f"python:{__name__}:top_level",
        "objective": {"metric": "score", "direction": "minimize"},
        "space": {"a": [1, 2]},
        "pruner": {"name": "none"},
    }
    assert study_of(top_level, {"space": {"b": [1]}})["space"] == {"b": [1]}
    with pytest.raises(UserError, match="missing: space, metric, direction"):
        study_of(Path.exists, {})
