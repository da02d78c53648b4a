"""`sft-tune import`, `report` and `plot`, on a study that another program made with Optuna."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from tests.cli.conftest import Run, Tiny


def other_study(name: str = "year", objectives: int = 1) -> None:
    """Make a study in other.db as a program without us does: its best trial is number 1."""
    study = optuna.create_study(
        storage="sqlite:///other.db", study_name=name, directions=["maximize"] * objectives
    )
    kind = optuna.distributions.FloatDistribution(0.0, 1.0)
    for rate, value in ((0.1, 0.5), (0.4, 0.9), (0.8, 0.7), (0.9, 0.2)):
        study.add_trial(
            optuna.trial.create_trial(
                params={"rate": rate},
                distributions={"rate": kind},
                values=[value] * objectives,
                intermediate_values={1: value / 2, 2: value},
            )
        )


def test_an_imported_study_is_read_by_every_command_that_reads(run: Run) -> None:
    other_study()
    done = run("import", "year", "--from", "other.db", "--metric", "f1", "--storage", "our.db")
    assert done.stdout == "year: 4 trials, f1\nnext  sft-tune report year --storage our.db\n"
    storage = ("--storage", "our.db")
    rows = json.loads(run("trials", "year", "--json", *storage).stdout)
    assert [(row["params"]["rate"], row["value"]) for row in rows] == [
        *((0.1, 0.5), (0.4, 0.9), (0.8, 0.7), (0.9, 0.2))
    ]
    assert json.loads(run("best", "year", "--json", *storage).stdout)["number"] == 1
    (listed,) = json.loads(run("list", "--json", *storage).stdout)
    assert listed["metric"] == "f1"
    run("report", "year", "-o", "year.html", *storage)
    page = Path("year.html").read_text(encoding="utf8")
    assert "f1" in page and "0.9" in page
    run("plot", "year", "history", "--save", "h.html", *storage)
    assert "f1" in Path("h.html").read_text(encoding="utf8")


def test_an_import_copies_under_another_name_and_never_over_a_study(run: Run) -> None:
    other_study()
    before = Path("other.db").read_bytes()
    args = ("import", "year", "--from", "other.db", "--storage", "our.db")
    assert run(*args).stdout.startswith("year: 4 trials, value\n")
    assert "give another name with --as" in run(*args, code=2).stderr
    assert run(*args, "--as", "again").stdout.startswith("again: 4 trials, value\n")
    assert Path("other.db").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("year", "--from", "none.db"), "--from: no database at sqlite:///"),
        (("yaer", "--from", "other.db"), "did you mean 'year'?"),
        (("two", "--from", "other.db"), "study 'two' has 2 objectives"),
        (("year", "--from", "our.db"), "--from is the database itself"),
        (("year", "--from", "text.db"), "cannot be read as a database of Optuna's"),
    ],
)
def test_what_cannot_be_imported_is_the_users_mistake(
    run: Run, args: tuple[str, ...], said: str
) -> None:
    other_study()
    other_study("two", objectives=2)
    Path("text.db").write_text("no database, only some text that is long enough to be read" * 9)
    assert said in run("import", *args, "--storage", "our.db", code=2).stderr
    assert not Path("none.db").exists()
    assert run("list", "--json", "--storage", "our.db").stdout == "[]\n"


def test_plots_and_reports_go_where_they_are_told(run: Run, tiny: Tiny) -> None:
    run("plot", "tiny", "slice", "--param", "learning_rate", "--storage", tiny.storage)
    assert "learning_rate" in Path("tiny-slice.html").read_text(encoding="utf8")
    assert "is not one of" in run("plot", "tiny", "x", "--storage", tiny.storage, code=2).stderr
    assert run("report", "tiny", "--storage", tiny.storage).stdout.startswith("tiny-report.html  ")
    gone = run("report", "tiny", "-o", "no/r.html", "--storage", tiny.storage, code=2)
    assert "no does not exist" in gone.stderr
