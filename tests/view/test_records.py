from __future__ import annotations

import csv
import io

from sft_tune.view.records import (
    evaluation_json,
    evaluation_records,
    study_json,
    to_csv,
    to_parquet,
    trial_json,
    trial_records,
)
from tests.view.examples import NOW, pruned_row, rung_row, study_row, trial_row


def test_trial_records_are_flat_and_have_the_same_keys() -> None:
    records = trial_records(
        [
            trial_row(0, 0.8, params={"learning_rate": 1e-3}),
            pruned_row(1, value=None, params={"schedule": "cosine"}, metrics={}),
        ]
    )
    first, second = records
    assert list(first) == list(second)
    assert (first["learning_rate"], first["schedule"]) == (1e-3, None)
    assert (first["validation_accuracy"], second["validation_accuracy"]) == (0.8, None)
    assert (second["number"], second["reason"], second["last_progress"]) == (1, "pruned", 20)


def test_rung_records_are_flat() -> None:
    (record,) = evaluation_records([rung_row(3, 50, 0.51, 1.5)])
    assert record["number"] == 3
    assert record["progress"] == 50
    assert record["validation_accuracy"] == 0.51
    assert record["validation_loss"] == 1.25


def test_csv_reads_back() -> None:
    text = to_csv(trial_records([trial_row(0, 0.8, note='a "quoted", note\nof two lines')]))
    (row,) = csv.DictReader(io.StringIO(text))
    assert row["value"] == "0.8"
    assert row["note"] == 'a "quoted", note\nof two lines'
    assert row["duplicate_of"] == ""
    assert to_csv([]) == ""


def test_json_keeps_parameters_and_metrics_apart() -> None:
    trial = trial_json(trial_row(0, 0.8, params={"learning_rate": 1e-3}))
    assert trial["params"] == {"learning_rate": 1e-3}
    assert trial["metrics"] == {"accuracy": 0.8, "loss": 1.0}
    rung = evaluation_json(rung_row(3, 50, 0.51, 1.5))
    assert (rung["progress"], rung["metrics"]["accuracy"]) == (50, 0.51)
    assert "number" not in rung


def test_a_study_says_whether_it_runs() -> None:
    assert study_json(study_row(lease_until=NOW + 1), NOW)["running"] is True
    assert study_json(study_row(), NOW)["running"] is False


def test_a_parquet_column_has_one_type_and_keeps_numbers() -> None:
    import io

    import pandas

    records = [
        {"number": 0, "value": 0.5, "depth": 2, "flags": None},
        {"number": 1, "value": None, "depth": "all", "flags": {"faults": ["nan"]}},
    ]
    frame = pandas.read_parquet(io.BytesIO(to_parquet(records)))
    assert list(frame["number"]) == [0, 1]
    assert frame["value"][0] == 0.5 and pandas.isna(frame["value"][1])
    assert list(frame["depth"]) == ["2", "all"]
    assert frame["flags"][1] == '{"faults": ["nan"]}'
    assert len(pandas.read_parquet(io.BytesIO(to_parquet([])))) == 0
