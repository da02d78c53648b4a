from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import sft_tune

PACKAGE = Path(sft_tune.__file__).parent

# What each layer may import of sft_tune; a layer that is not named here is an error.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "spec": {"errors"},
    "search": {"spec", "errors"},
    "trial": {"spec", "errors"},
    "store": {"spec", "errors"},
    "run": {"search", "trial", "store", "spec", "errors"},
    "view": {"store", "spec", "errors"},
    "session": {"run", "view", "search", "trial", "store", "spec", "errors"},
    "api": {"session", "run", "view", "search", "trial", "store", "spec", "errors"},
    "cli": {"session", "run", "view", "search", "trial", "store", "spec", "errors"},
    "__init__": {"api", "spec", "errors"},
}
# Who alone may import a library when a program runs (imports for the type checker are free).
# The worker's entry is of `run`, but lives in the process that trains.
ONLY: dict[str, set[str]] = {
    "torch": {"trial", "run/worker.py"},
    "torchvision": {"trial"},
    "transformers": {"trial"},
    "datasets": {"trial"},
    "optuna.samplers": {"search"},
    "optuna.pruners": {"search"},
    "optuna": {"search", "store", "run", "session", "api"},
    "optuna_dashboard": {"view"},
    "plotly": {"view"},
    "sqlalchemy": {"store", "run"},
    "alembic": {"store"},
    "typer": {"cli"},
}


class Import(NamedTuple):
    file: str
    line: int
    name: str
    for_types_only: bool


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Yield everything that `source` imports, functions' inner imports included."""
    tree = ast.parse(source)
    type_blocks = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = ["sft_tune", *Path(file).with_suffix("").parts][: -node.level]
                base = ".".join([*parts, base]).rstrip(".")
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            names = [whole] if whole in ("optuna.samplers", "optuna.pruners") else []
        for name in names:
            yield Import(file, getattr(node, "lineno", 0), name, id(node) in type_blocks)


def layer_of(file: str) -> str:
    return Path(file).parts[0].removesuffix(".py")


def faults(sources: dict[str, str]) -> list[str]:
    """Return what breaks the layers among `sources`, texts by path below the package."""
    found = []
    for file, source in sources.items():
        layer = layer_of(file)
        for imported in imports_of(source, file):
            place = f"{file}:{imported.line}: "
            parts = imported.name.split(".")
            if parts[0] == "sft_tune":
                target = parts[1] if len(parts) > 1 and parts[1] in BELOW else "__init__"
                if target not in BELOW[layer] | {layer}:
                    found.append(place + f"{layer} may not import {target}")
            elif not imported.for_types_only:
                for library, allowed in ONLY.items():
                    inside = f"{imported.name}.".startswith(f"{library}.")
                    if inside and not {layer, file} & allowed:
                        found.append(place + f"{layer} may not import {library}")
    return found


def package_sources() -> dict[str, str]:
    files = sorted(PACKAGE.rglob("*.py"))
    return {file.relative_to(PACKAGE).as_posix(): file.read_text("utf8") for file in files}


def test_every_import_of_the_package_points_down() -> None:
    sources = package_sources()
    assert {layer_of(file) for file in sources} <= set(BELOW)
    assert faults(sources) == []


@pytest.mark.parametrize(
    ("file", "source", "fault"),
    [
        ("spec/a.py", "from sft_tune.store.reads import x", "spec may not import store"),
        ("errors.py", "import sft_tune.spec.study", "errors may not import spec"),
        ("search/a.py", "from sft_tune.store import reads", "search may not import store"),
        ("trial/data/a.py", "def f():\n    import sft_tune.search", "trial may not import search"),
        ("store/a.py", "from sft_tune import trial", "store may not import trial"),
        ("store/a.py", "from ..run import study", "store may not import run"),
        ("store/deep/a.py", "from ...view import tables", "store may not import view"),
        ("view/a.py", "from sft_tune.run.events import Notice", "view may not import run"),
        ("run/a.py", "from sft_tune.view import live", "run may not import view"),
        ("run/a.py", "from sft_tune import tune", "run may not import __init__"),
        ("api/a.py", "from sft_tune.cli import main", "api may not import cli"),
        ("run/a.py", "import torch.nn as nn", "run may not import torch"),
        ("cli/a.py", "if True:\n    from transformers import x", "cli may not import transformers"),
        (
            "run/a.py",
            "from optuna.samplers import TPESampler",
            "run may not import optuna.samplers",
        ),
        ("run/a.py", "from optuna import pruners", "run may not import optuna.pruners"),
        ("run/a.py", "import optuna\nx = optuna.samplers", "run may not import optuna.samplers"),
        ("trial/a.py", "import optuna", "trial may not import optuna"),
        ("trial/a.py", "from sqlalchemy import select", "trial may not import sqlalchemy"),
        ("store/a.py", "import plotly", "store may not import plotly"),
        (
            "run/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sft_tune.view",
            "run may not import view",
        ),
    ],
)
def test_an_import_that_points_up_or_sideways_is_found(file: str, source: str, fault: str) -> None:
    assert [found.split(": ")[1] for found in faults({file: source})][:1] == [fault]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("trial/a.py", "import torch\nfrom sft_tune.spec.study import StudySpec"),
        ("run/worker.py", "def main():\n    import torch"),
        ("run/a.py", "import optuna\nfrom sft_tune.search.samplers import make_sampler"),
        ("store/a.py", "from . import reads\nfrom .reads import x\nimport torchlight"),
        ("api/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ],
)
def test_an_import_that_points_down_is_no_fault(file: str, source: str) -> None:
    assert faults({file: source}) == []


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("sft_tune", "torch optuna sqlalchemy pandas pydantic rich typer"),
        ("sft_tune.api", "torch optuna pandas rich typer"),
        ("sft_tune.cli", "torch optuna sqlalchemy pandas pydantic"),
        ("sft_tune.run.study sft_tune.run.single", "torch torchvision transformers datasets"),
        ("sft_tune.run.worker sft_tune.trial.loop sft_tune.trial.check", "optuna sqlalchemy"),
    ],
)
def test_a_process_does_not_load_what_it_has_no_use_for(modules: str, absent: str) -> None:
    code = (
        f"import sys, {', '.join(modules.split())}\n"
        f"print(*sorted(set({absent.split()!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == ([], "")
