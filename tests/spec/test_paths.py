# ruff: noqa: E501  (one row a rule: wrapped, the tables could not be compared by eye)
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_tune.errors import Problem
from sft_tune.spec.config import assemble
from sft_tune.spec.load import load_study, parse_study
from sft_tune.spec.paths import localize, localize_config
from sft_tune.spec.study import StudySpec

Parse = Callable[..., StudySpec]
Problems = Callable[..., list[Problem]]

RELATIVE = "; relative paths start at the study file's folder"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the study, with files that it can name."""
    for name in ("data/train.csv", "w.safetensors", "functions.py", "encoder/config.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("data", "{root}/data"),
        ("./data/../data/train.csv", "{root}/data/train.csv"),
        ("{root}/data", "{root}/data"),
        ("~/data", "{root}/data"),
        ("python:functions.py:read", "python:{root}/functions.py:read"),
        ("python:~/functions.py:read", "python:{root}/functions.py:read"),
        ("python:package.module:read", "python:package.module:read"),
        ("torchvision:CIFAR10", "torchvision:CIFAR10"),
        ("hub:org/name", "hub:org/name"),
        ("sklearn:digits", "sklearn:digits"),
    ],
)
def test_a_data_source_becomes_absolute_unless_it_is_no_file(
    parse: Parse, root: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: str
) -> None:
    monkeypatch.setenv("HOME", str(root))
    spec = parse(data={"source": source.format(root=root)})
    assert spec.data.source == expected.format(root=root)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"name": "transformers:encoder"}, ("transformers:{root}/encoder", "DEFAULT")),
        ({"name": "transformers:./encoder"}, ("transformers:{root}/encoder", "DEFAULT")),
        ({"name": "transformers:org/model"}, ("transformers:org/model", "DEFAULT")),
        ({"name": "torchvision:resnet18"}, ("torchvision:resnet18", "DEFAULT")),
        (
            {"name": "torchvision:resnet18", "weights": "w.safetensors"},
            ("torchvision:resnet18", "{root}/w.safetensors"),
        ),
        (
            {"name": "torchvision:resnet18", "weights": "encoder/config.json"},
            ("torchvision:resnet18", "{root}/encoder/config.json"),
        ),
        (
            {"name": "torchvision:resnet18", "weights": "IMAGENET1K_V1"},
            ("torchvision:resnet18", "IMAGENET1K_V1"),
        ),
    ],
)
def test_a_models_paths_become_absolute(
    root: Path, model: dict[str, str], expected: tuple[str, str]
) -> None:
    study = {
        "name": "x",
        "task": "image-classification",
        "data": {"source": "data"},
        "model": model,
        "budget": {"trials": 1},
    }
    spec = parse_study(study, root=root)
    assert (spec.model.name, spec.model.weights) == tuple(e.format(root=root) for e in expected)


def test_paths_in_space_conditions_and_queue_become_absolute(parse: Parse, root: Path) -> None:
    spec = parse(
        model={"weights": "w.safetensors"},
        space={
            "model.weights": ["none", "w.safetensors"],
            "freeze": {"values": ["none", "backbone"], "when": {"model.weights": "w.safetensors"}},
        },
        sampler={"enqueue": [{"model.weights": "w.safetensors"}]},
    )
    full = str(root / "w.safetensors")
    assert spec.model.weights == full
    assert spec.space["model.weights"].values == ("none", full)
    assert spec.space["freeze"].when == {"model.weights": (full,)}
    assert spec.sampler.enqueue == ({"model.weights": full},)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///runs/a.db?timeout=5", "sqlite:///{root}/runs/a.db?timeout=5"),
        ("sqlite:////abs/a.db", "sqlite:////abs/a.db"),
        ("a.db", "sqlite:///{root}/a.db"),
        ("postgresql+psycopg://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("mariadb://h/d", "mariadb://h/d"),
    ],
)
def test_a_relative_database_file_becomes_absolute(
    parse: Parse, root: Path, url: str, expected: str
) -> None:
    spec = parse(storage={"url": url, "artifacts": "runs"})
    assert spec.storage.url == expected.format(root=root)
    assert spec.storage.artifacts == str(root / "runs")


def test_artifacts_may_be_a_url(parse: Parse) -> None:
    assert parse(storage={"artifacts": "s3://bucket/x"}).storage.artifacts == "s3://bucket/x"


@pytest.mark.parametrize(
    ("changes", "place", "rule", "value"),
    [
        ({"data": {"source": "dta"}}, "data.source", "no such file or folder: {root}/dta" + RELATIVE, "'dta'"),
        ({"data": {"source": ""}}, "data.source", "must name a file, a folder or a data set", "''"),
        ({"data": {"source": "torchvison:CIFAR10"}}, "data.source", "unknown scheme `torchvison:`; did you mean torchvision:CIFAR10?", "'torchvison:CIFAR10'"),
        ({"data": {"source": "ftp:x"}}, "data.source", "unknown scheme `ftp:`; use a path or one of torchvision:, hub:, sklearn:, python:", "'ftp:x'"),
        ({"data": {"source": "sklearn:iris"}}, "data.source", "must be sklearn:digits", "'sklearn:iris'"),
        ({"data": {"source": "hub:"}}, "data.source", "must be a name after `hub:`", "'hub:'"),
        ({"data": {"source": "python:f"}}, "data.source", "must be python:module:function or python:file.py:function", "'python:f'"),
        ({"data": {"source": "python:m:1f"}}, "data.source", "must be python:module:function or python:file.py:function", "'python:m:1f'"),
        ({"data": {"source": "python:no.py:f"}}, "data.source", "no such Python file: {root}/no.py" + RELATIVE, "'python:no.py:f'"),
        ({"model": {"name": "resnet18"}}, "model.name", "must begin with torchvision:, transformers:, timm:, builtin:; for example torchvision:resnet18", "'resnet18'"),
        ({"model": {"name": "bert-base"}}, "model.name", "must begin with torchvision:, transformers:, timm:, builtin:; for example transformers:bert-base", "'bert-base'"),
        ({"model": {"name": "torchvsion:resnet18"}}, "model.name", "must begin with torchvision:, transformers:, timm:, builtin:; did you mean torchvision:resnet18?", "'torchvsion:resnet18'"),
        ({"model": {"name": "torchvision:"}}, "model.name", "must begin with torchvision:, transformers:, timm:, builtin:; add the name after it", "'torchvision:'"),
        ({"model": {"name": ""}}, "model.name", "must begin with torchvision:, transformers:, timm:, builtin:; for example torchvision:resnet18", "''"),
        ({"model": {"name": "builtin:resnet"}}, "model.name", "builtin: has one model; write builtin:convnet", "'builtin:resnet'"),
        ({"model": {"name": "transformers:./no", "weights": "DEFAULT"}}, "model.name", "no such model folder: {root}/no" + RELATIVE, "'transformers:./no'"),
        ({"model": {"weights": "no.pt"}}, "model.weights", "no such weights file: {root}/no.pt" + RELATIVE, "'no.pt'"),
        ({"model": {"weights": " "}}, "model.weights", "must be DEFAULT, none, a file or a name of weights", "' '"),
        ({"space": {"model.weights": ["none", "no.pt"]}}, "space.model.weights[1]", "no such weights file: {root}/no.pt" + RELATIVE, "'no.pt'"),
        ({"storage": {"url": "oracle://x"}}, "storage.url", "must be a URL: sqlite:///file.db, postgresql://... or mysql://...", "'oracle://x'"),
        ({"storage": {"url": "sqlite://x.db"}}, "storage.url", "a SQLite URL has three slashes; write sqlite:///file.db", "'sqlite://x.db'"),
    ],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_told_with_the_path_that_was_tried(
    problems: Problems,
    root: Path,
    changes: dict[str, Any],
    place: str,
    rule: str,
    value: str,
) -> None:
    assert problems(**changes) == [Problem(place, rule.format(root=root), value)]


def test_paths_are_relative_to_the_file_not_to_the_working_directory(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "studies").mkdir()
    (root / "elsewhere").mkdir()
    text = "name: x\ntask: image-classification\ndata: {source: ../data}\nbudget: {trials: 1}\n"
    (root / "studies/s.yaml").write_text(text + "model: {name: torchvision:resnet18}\n")
    monkeypatch.chdir(root / "elsewhere")
    assert load_study("../studies/s.yaml").spec.data.source == str(root / "data")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/them/old/data/train.csv", "{new}/data/train.csv"),
        ("/home/them/old/not/there", "{new}/not/there"),
        ("/home/them/old", "{new}"),
        ("/home/them/older/x", "/home/them/older/x"),
        ("/home/them/beside", "{new}/../beside"),  # outside, and on this machine only there
        ("/home/them/nowhere", "/home/them/nowhere"),
        ("none", "none"),
    ],
)
def test_paths_of_a_study_are_found_below_the_root_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (tmp_path / "beside").touch()
    monkeypatch.setenv("SFT_TUNE_ROOT", str(new))
    wanted = expected.format(new=new)
    assert localize(path, "/home/them/old") == os.path.normpath(wanted)


def test_a_path_outside_the_root_that_exists_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/old", "b/new", "a/beside", "b/beside"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("SFT_TUNE_ROOT", str(tmp_path / "b/new"))
    beside = str(tmp_path / "a/beside")
    assert localize(beside, str(tmp_path / "a/old")) == beside


def test_without_the_variable_paths_are_where_they_were() -> None:
    assert localize("/home/them/old/x", "/home/them/old") == "/home/them/old/x"


def test_files_below_the_root_of_this_machine_are_no_problem(
    root: Path, problems: Problems, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = root / "moved"
    (moved / "images").mkdir(parents=True)
    assert [p.path for p in problems(data={"source": "images"})] == ["data.source"]
    monkeypatch.setenv("SFT_TUNE_ROOT", str(moved))
    assert problems(data={"source": "images"}) == []
    found = problems(data={"source": "other"})
    assert found[0].rule == f"no such file or folder: {moved}/other" + RELATIVE


def test_a_configuration_is_localized_for_a_worker(
    root: Path, parse: Parse, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = parse(
        data={"source": "python:functions.py:read"},
        model={"name": "transformers:encoder", "weights": "w.safetensors"},
    )
    config = assemble(spec, {"learning_rate": 1e-3}, 0)
    assert localize_config(config, str(root)) == config
    monkeypatch.setenv("SFT_TUNE_ROOT", "/mnt")
    local = localize_config(config, str(root))
    assert local.data.source == "python:/mnt/functions.py:read"
    assert local.model.name == "transformers:/mnt/encoder"
    assert local.model.weights == "/mnt/w.safetensors"
    assert local.training == config.training
