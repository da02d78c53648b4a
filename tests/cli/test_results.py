from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from sft_tune.cli.trials import ordered
from sft_tune.errors import UserError
from sft_tune.spec.load import load_study, parse_study
from sft_tune.spec.yaml12 import parse
from tests.cli.conftest import Run, Tiny
from tests.view.examples import pruned_row, trial_row


def test_list_shows_the_studies(run: Run, tiny: Tiny) -> None:
    lines = run("list", "--storage", tiny.storage).stdout.splitlines()
    assert lines[0].split()[:3] == ["study", "state", "trials"]
    assert lines[1].startswith("tiny   finished: trials  3 of 3  accuracy  0.")
    (study,) = json.loads(run("list", "--json", "--storage", tiny.storage).stdout)
    assert (study["name"], study["ended"], study["running"]) == ("tiny", "trials", False)


def test_list_of_a_database_without_studies(run: Run) -> None:
    from sft_tune.store.database import Database

    Database.open("empty.db", create=True).dispose()
    assert run("list", "--storage", "empty.db").stdout.startswith("no studies yet in sqlite:///")
    assert run("list", "--storage", "empty.db", "--json").stdout == "[]\n"


def test_the_environment_names_the_database(
    run: Run, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFT_TUNE_STORAGE", tiny.storage)
    assert "tiny" in run("list").stdout


def test_status_says_how_far_the_study_is(run: Run, tiny: Tiny) -> None:
    text = run("status", "tiny", "--storage", tiny.storage).stdout
    assert "finished: every trial of the budget is done" in text
    assert "3 of 3" in text
    assert "2 completed, 1 diverged" in text
    assert "on the default's 0." in text
    told = json.loads(run("status", "tiny", "--json", "--storage", tiny.storage).stdout)
    assert told["trials_ended"] == 3
    assert told["best"]["params"] == {"learning_rate": 1e-2}
    assert told["running_trials"] == []


def test_trials_come_as_table_csv_and_json(run: Run, tiny: Tiny) -> None:
    table = run("trials", "tiny", "--storage", tiny.storage).stdout.splitlines()
    titles = ["trial", "ended as", "best accuracy", "reached", "time", "learning_rate"]
    assert table[0].split() == " ".join(titles).split()
    assert [line.split()[0] for line in table[1:]] == ["0", "1", "2"]
    text = run("trials", "tiny", "--format", "csv", "--storage", tiny.storage).stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["number"] for row in rows] == ["0", "1", "2"]
    assert {row["learning_rate"] for row in rows} == {"1e-06", "0.01", "1e+30"}
    as_json = run("trials", "tiny", "--json", "--storage", tiny.storage).stdout
    assert run("trials", "tiny", "--format", "json", "--storage", tiny.storage).stdout == as_json
    assert [trial["number"] for trial in json.loads(as_json)] == [0, 1, 2]


def test_trials_come_as_parquet_in_a_file_or_a_pipe(run: Run, tiny: Tiny) -> None:
    import pandas

    run("trials", "tiny", "-o", "t.parquet", "--storage", tiny.storage)
    frame = pandas.read_parquet("t.parquet")
    assert list(frame["number"]) == [0, 1, 2]
    assert sorted(frame["learning_rate"]) == [1e-6, 1e-2, 1e30]
    piped = run("trials", "tiny", "--format", "parquet", "--storage", tiny.storage).stdout_bytes
    assert piped == Path("t.parquet").read_bytes()
    refused = run("trials", "tiny", "-o", "t.txt", "--storage", tiny.storage, code=2)
    assert "ending must be one of .csv, .json, .parquet (got t.txt)" in refused.stderr
    gone = ("--format", "csv", "-o", "no/t.csv", "--storage", tiny.storage)
    assert "no does not exist" in run("trials", "tiny", *gone, code=2).stderr


def test_trials_are_sorted_best_first_and_those_without_a_value_last(run: Run, tiny: Tiny) -> None:
    args = ("trials", "tiny", "--json", "--storage", tiny.storage, "--sort")
    values = [trial["value"] for trial in json.loads(run(*args, "value").stdout)]
    assert values[0] >= values[1]
    rates = [t["params"]["learning_rate"] for t in json.loads(run(*args, "learning_rate").stdout)]
    assert rates == sorted(rates)
    assert "use one of number, value, seconds, learning_rate" in run(*args, "x", code=2).stderr


def test_the_order_of_rows_puts_missing_values_last() -> None:
    rows = [
        pruned_row(0, value=None, params={}),
        trial_row(1, 0.5, params={"schedule": "cosine"}),
        trial_row(2, float("nan"), params={"schedule": 1}),
        trial_row(3, 0.7, params={"schedule": "adam"}),
    ]
    assert [row.number for row in ordered(rows, "value", True)] == [3, 1, 0, 2]
    assert [row.number for row in ordered(rows, "value", False)] == [1, 3, 0, 2]
    assert [row.number for row in ordered(rows, "schedule", True)] == [2, 3, 1, 0]
    with pytest.raises(UserError, match="--sort"):
        ordered(rows, "nothing", True)


def test_show_has_the_whole_of_a_trial(run: Run, tiny: Tiny) -> None:
    text = run("show", "tiny", "0", "--storage", tiny.storage).stdout
    assert text.startswith("trial 0 of tiny: completed\n")
    assert "learning_rate  1e-06     same" in text
    assert " 50 % " in text
    assert "100 % " in text
    assert "best.safetensors" in text
    told = json.loads(run("show", "tiny", "0", "--json", "--storage", tiny.storage).stdout)
    assert told["config"]["training"]["epochs"] == 8
    assert [rung["progress"] for rung in told["rungs"]] == [50, 100]
    assert any(file.endswith("best.safetensors") for file in told["files"])


def test_show_says_why_a_trial_diverged(run: Run, tiny: Tiny) -> None:
    rows = json.loads(run("trials", "tiny", "--json", "--storage", tiny.storage).stdout)
    (number,) = [row["number"] for row in rows if row["reason"] == "diverged"]
    text = run("show", "tiny", str(number), "--storage", tiny.storage).stdout
    assert text.startswith(f"trial {number} of tiny: diverged, ")
    assert "nan" in text.splitlines()[0] or "inf" in text.splitlines()[0]


def test_show_says_which_trials_there_are(run: Run, tiny: Tiny) -> None:
    result = run("show", "tiny", "9", "--storage", tiny.storage, code=2)
    assert result.stderr == "error: study 'tiny' has no trial 9; they are 0 to 2\n"


def test_best_is_for_people_programs_and_study_files(run: Run, tiny: Tiny, tmp_path: Path) -> None:
    text = run("best", "tiny", "--storage", tiny.storage).stdout
    assert text.startswith("accuracy 0.")
    assert "learning_rate   0.01    1e-06" in text
    told = json.loads(run("best", "tiny", "--json", "--storage", tiny.storage).stdout)
    assert told["config"]["training"]["learning_rate"] == 1e-2
    assert Path(told["checkpoint"]).is_file()

    sections: dict[Any, Any] = parse(
        run("best", "tiny", "--yaml", "--storage", tiny.storage).stdout, "best"
    ).data
    study = load_study(tiny.file).spec.model_dump(mode="json", exclude_unset=True)
    kept = {name: study[name] for name in ("name", "task", "data", "objective")}
    again = parse_study({**kept, **sections, "budget": {"trials": 1}}, root=tmp_path)
    assert again.training.learning_rate == 1e-2
    assert again.training.epochs == 8
    both = run("best", "tiny", "--yaml", "--json", "--storage", tiny.storage, code=2)
    assert "give one" in both.stderr
