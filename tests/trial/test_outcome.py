from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths

EVALUATION = Evaluation(
    progress=10,
    epoch=0.3,
    step=3,
    horizon=30,
    train_loss=0.7,
    metrics={"loss": 0.6, "accuracy": 0.5},
    learning_rate=1e-4,
    gradient_norm=2.0,
    seconds=1.5,
)
OUTCOME = Outcome(
    reason="pruned",
    note="at 10 % of its horizon",
    value=0.5,
    metrics={"loss": 0.6},
    best_progress=10,
    steps=3,
    horizon=30,
    seconds=1.5,
    peak_memory=12,
    samples_per_second=100.0,
    checkpoint=None,
    resumed_from=0,
)


def test_messages_come_back_from_json_as_they_were() -> None:
    for message in (EVALUATION, OUTCOME):
        record = json.loads(json.dumps(message.to_json()))
        assert type(message).from_json(record) == message


def test_a_message_of_a_later_version_is_read() -> None:
    assert Evaluation.from_json({**EVALUATION.to_json(), "new": 1}) == EVALUATION


def test_messages_need_no_torch() -> None:
    code = "import sys, sft_tune.trial.outcome, sft_tune.trial.paths; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_trials_files_are_in_its_folder_and_resume_files_can_be_cleared(tmp_path: Path) -> None:
    paths = TrialPaths(tmp_path / "a" / "trial-0").create()
    for path in (paths.best, paths.resume, paths.previous_resume, paths.config, paths.log):
        assert path.parent == paths.root
        path.write_text("x")
    (paths.root / "resume.safetensors.tmp").write_text("torn")
    paths.clear_resume()
    paths.clear_resume()
    assert sorted(p.name for p in paths.root.iterdir()) == [
        "best.safetensors",
        "config.json",
        "log.txt",
    ]
