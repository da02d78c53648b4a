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
        ("epochs", "KEY=VALUE"),
        ("data.source=x", "--set takes"),
        ("epochs=many", "--set epochs: "),
        ("epochs=0", "--set epochs: "),
        ("model.dropout=2", "--set model.dropout: "),
        ("schedule=cosin", "--set schedule: "),
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
