from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_tune.cli.train import changed
from sft_tune.errors import UserError
from sft_tune.spec.config import assemble, default_params
from tests.cli.conftest import Run, Tiny
from tests.view.examples import study_spec

SPEC = study_spec(training={"learning_rate": 1e-4})
CONFIG = assemble(SPEC, default_params(SPEC), 0)


def test_settings_are_changed_as_a_study_file_would_write_them() -> None:
    settings = ["learning_rate=3e-5", "schedule=cosine", "clip_norm=null", "model.dropout=0.1"]
    config = changed(CONFIG, settings)
    assert config.training.learning_rate == 3e-5
    assert config.training.schedule == "cosine"
    assert config.training.clip_norm is None
    assert config.model.dropout == 0.1
    assert changed(CONFIG, []) == CONFIG


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("lr=1", "did you mean learning_rate?"),
        ("epochs", "--set takes KEY=VALUE (got epochs); write epochs=VALUE"),
        ("data.source=x", "--set takes"),
        ("epochs=many", "--set epochs: must be a whole number (got 'many')"),
        ("epochs=0", "--set epochs: must be at least 1 and at most 10000 (got 0)"),
        ("clip_norm=.nan", "--set clip_norm: must be a finite number (got nan)"),
        ("model.dropout=2", "--set model.dropout: must be at least 0 and below 1 (got 2)"),
        ("schedule=cosin", "--set schedule: must be one of constant, linear, cosine, exponential"),
        ("epochs=[", "is not YAML"),
    ],
)
def test_a_setting_that_is_none_is_refused(setting: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        changed(CONFIG, [setting])
    assert said in str(caught.value)


def test_a_trial_trained_again_alone_gives_its_numbers_and_is_not_trained_twice(
    run: Run, tiny: Tiny
) -> None:
    trial = json.loads(run("show", "tiny", "0", "--json", "--storage", tiny.storage).stdout)
    args = ("train", tiny.file, "--trial", "0", "--storage", tiny.storage)
    text = run(*args).stdout
    assert " 50 %  accuracy 0." in text
    assert "100 %  accuracy 0." in text
    assert "completed\n" in text

    again = run(*args, "--json")
    assert "already trained in " in again.stderr
    result = json.loads(again.stdout)
    assert result["value"] == trial["value"]
    assert result["config"] == trial["config"]
    assert [rung["metrics"] for rung in result["rungs"]] == [
        rung["metrics"] for rung in trial["rungs"]
    ]
    assert Path(result["checkpoint"]).is_relative_to(Path.cwd() / "sft_tune_runs")
    assert Path(result["checkpoint"]).is_file()


def test_a_trial_that_is_not_there_cannot_be_trained(run: Run, tiny: Tiny) -> None:
    result = run("train", tiny.file, "--trial", "7", "--storage", tiny.storage, code=2)
    assert result.stderr == "error: study 'tiny' has no trial 7; they are 0 to 2\n"


def test_a_folder_that_cannot_be_made_is_told_with_the_remedy(
    run: Run, tiny: Tiny, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "runs"
    told = run("train", tiny.file, "-o", folder, code=2).stderr
    assert told == (
        f"error: the folder of checkpoints cannot be made (got {folder}: Not a directory); "
        "give another with -o\n"
    )
