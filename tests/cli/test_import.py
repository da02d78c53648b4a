"""`sft-tune import`, `report` and `plot`, on a study that another program made with Optuna."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import optuna
import pytest

import sft_tune
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


def old_study(name: str, storage: str, *, trials: int = 28) -> None:
    """Make a study as an old program did: the score grows with rate to its edge, depth is naught.

    A trial reports steps, not percent; some were cut after the first.
    """
    kinds: dict[str, optuna.distributions.BaseDistribution] = {
        "rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "depth": optuna.distributions.IntDistribution(1, 8),
        "kind": optuna.distributions.CategoricalDistribution(["a", "b"]),
    }
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    draw = random.Random(3)
    for number in range(trials):
        place = (number * 11 % trials) / (trials - 1)
        rate = min(1e-2, 1e-4 * 100**place)
        cut = number % 4 == 3 and place < 0.5
        value = 0.5 + 0.3 * place
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.PRUNED if cut else optuna.trial.TrialState.COMPLETE,
                params={"rate": rate, "depth": draw.randint(1, 8), "kind": draw.choice("ab")},
                distributions=kinds,
                value=value / 2 if cut else value,
                intermediate_values={1: value / 2} if cut else {1: value / 2, 2: value},
            )
        )


def test_studies_of_another_program_are_advised_on_and_compared(run: Run) -> None:
    """One is imported, one was made in our database by the other program, one lies elsewhere."""
    old_study("old", "sqlite:///other.db")
    run("import", "old", "--from", "other.db", "--metric", "f1", "--storage", "our.db")
    old_study("beside", "sqlite:///our.db", trials=4)
    storage = ("--storage", "our.db")
    advice = json.loads(run("advise", "old", "--json", *storage).stdout)["advice"]
    edge = next(piece for piece in advice if piece["kind"] == "edge")
    assert edge["numbers"]["name"] == "rate" and edge["numbers"]["high"] == 0.1
    fixed = [piece for piece in advice if piece["kind"] == "influence"]
    assert {piece["numbers"]["name"] for piece in fixed} <= {"depth", "kind"}
    assert all("at step 1" in piece["text"] for piece in fixed)

    by = json.loads(run("compare", "old", "--by", "rate", "--json", *storage).stdout)
    assert by["where"] == "at step 1, which all trials reached"
    assert [group["n"] for group in by["groups"]] == [7, 7, 7, 7]
    assert [group["completed"] for group in by["groups"]] != [7, 7, 7, 7]
    means = [group["mean"] for group in by["groups"]]
    assert means == sorted(means) and means[-1] - means[0] == pytest.approx(0.1125, abs=0.01)

    run("import", "old", "--from", "other.db", "--metric", "f1", "--storage", "third.db")
    table = run("compare", "old", "third.db#old", "-o", "c.html", *storage).stdout
    assert "With the same budget" in table and "all found f1 0.8000" in table
    assert "old (third.db)" in Path("c.html").read_text(encoding="utf8")
    assert "once" in run("compare", "old", "our.db#old", *storage, code=2).stderr
    assert "one metric" in run("compare", "old", "beside", *storage, code=2).stderr
    alone = run("compare", "old", *storage, code=2).stderr
    assert "at least two studies (got 1)" in alone and "--by SETTING" in alone
    assert "name one" in run("compare", "old", "beside", "--by", "rate", *storage, code=2).stderr
    found = sft_tune.compare(["old", "third.db#old"], "our.db")
    assert found.studies["best"].tolist() == [0.8, 0.8]


def test_a_study_of_ours_is_advised_on_compared_and_looked_at_by_a_setting(
    tiny: Tiny, run: Run
) -> None:
    study = sft_tune.open_study("tiny", tiny.storage)
    assert isinstance(study.advise(), list)
    effect = study.marginal("learning_rate")
    assert effect["n"].sum() >= 2 and effect["completed"].sum() == 2
    shutil.copy(tiny.storage, "copy.db")
    found = sft_tune.compare([study, sft_tune.open_study("tiny", "copy.db")])
    assert len(found.studies) == 2 and found.result.close is True
    assert "<table>" in found._repr_html_()
