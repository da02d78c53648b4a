"""The README says what is so: commands exist, study files load, the reference is current."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

import sft_tune
from sft_tune.cli.app import app
from sft_tune.spec.documents import parse_text
from sft_tune.spec.load import load_study, parse_study
from sft_tune.spec.reference import reference_markdown
from sft_tune.store.database import Database
from tests.databases import backend, db, prepared  # noqa: F401
from tests.store.conftest import finish, make_spec, outcome, register, start

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"^( *)```(\w+)\n(.*?)^\1```", README, flags=re.M | re.S)


def blocks(language: str) -> list[str]:
    return [text for _, name, text in BLOCKS if name == language]


def commands() -> dict[str, click.Command]:
    group = typer.main.get_command(app)
    return dict(group.commands)  # type: ignore[attr-defined]


def shell_lines() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    calls = [part for line in lines for part in line.split(" && ")]
    words = [shlex.split(call) for call in calls]
    return [w[1:] for w in words if w and w[0].endswith("sft-tune")]


def test_every_call_in_the_readme_is_one_that_the_command_line_takes() -> None:
    known = commands()
    calls = shell_lines()
    assert len(calls) >= 6
    for name, *rest in calls:
        options = {flag for p in known[name].params for flag in (*p.opts, *p.secondary_opts)}
        for word in rest:
            if word.startswith("-"):
                assert word in options, f"sft-tune {name} has no {word}"


def test_every_command_is_in_the_readme_and_no_other() -> None:
    named = set(re.findall(r"^\| `sft-tune ([\w-]+)", README, flags=re.M))
    assert named == set(commands())


def test_the_study_file_of_the_readme_is_valid(tmp_path: Path) -> None:
    studies = [parse_text(text, ".yaml", "README").data for text in blocks("yaml")]
    whole = [study for study in studies if "name" in study]
    assert whole
    (tmp_path / "reviews").mkdir()
    for study in whole:
        parse_study(study, root=tmp_path)


def test_the_python_of_the_readme_names_what_there_is() -> None:
    for text in blocks("python"):
        compile(text, "README.md", "exec")
        for name in re.findall(r"sft_tune\.(\w+)", text):
            assert hasattr(sft_tune, name)
        for name in re.findall(r"\bstudy\.(\w+)", text):
            assert hasattr(sft_tune.Study, name)


QUERIES = [query.strip() for block in blocks("sql") for query in block.split(";") if query.strip()]


def test_the_readme_has_ten_queries() -> None:
    assert len(QUERIES) == 10


@pytest.mark.parametrize("query", QUERIES)
def test_the_sql_of_the_readme_runs(db: Database, query: str) -> None:  # noqa: F811
    study = register(db, make_spec(name="quickstart"))
    finish(db, study, start(db, study), outcome(value=0.5))
    finish(db, study, start(db, study), outcome(value=0.9))
    with db.reading() as connection:
        rows = connection.exec_driver_sql(query).all()
    rare = "diverged" in query or "attempts > 1" in query
    assert bool(rows) != rare
    if "best_so_far" in query:
        assert [tuple(row) for row in rows] == [(0, 0.5, 0.5), (1, 0.9, 0.9)]
    if "default_value" in query:
        assert tuple(rows[0]) == (0.5, 0.9)


def test_the_reference_is_what_the_code_says() -> None:
    assert reference_markdown().strip() in README


def test_every_shipped_study_is_in_the_readme() -> None:
    for path in (ROOT / "studies").rglob("*.yaml"):
        assert f"`{path.relative_to(ROOT / 'studies').as_posix()}`" in README


def test_links_and_pictures_lead_somewhere() -> None:
    headings = {
        re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", README, flags=re.M)
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("http"):
            assert (ROOT / target).is_file(), target


@pytest.mark.parametrize("key", ["sampler", "pruner", "optimizer", "schedule"])
def test_the_table_of_what_is_supported_has_every_choice(key: str) -> None:
    from sft_tune.spec.search import PrunerSpec, SamplerSpec
    from sft_tune.spec.training import TrainingSpec

    field = {
        "sampler": SamplerSpec.model_fields["name"],
        "pruner": PrunerSpec.model_fields["name"],
        "optimizer": TrainingSpec.model_fields["optimizer"],
        "schedule": TrainingSpec.model_fields["schedule"],
    }[key]
    table = README.split("## What is supported")[1].split("\n## ")[0]
    for choice in field.annotation.__args__:  # type: ignore[union-attr]
        assert choice in table


def test_the_quickstarts_numbers_are_of_the_shipped_file() -> None:
    spec = load_study(ROOT / "studies" / "quickstart.yaml").spec
    assert f"of {spec.budget.trials}" in README or f"{spec.budget.trials}:" in README
