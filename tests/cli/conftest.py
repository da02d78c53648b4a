from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner, Result

from sft_tune.cli import app

PROGRAM = Path(sys.executable).with_name("sft-tune")

# Three trials: the default, a better one, and one whose loss becomes nan.
STUDY = """\
name: tiny
task: image-classification
data: {source: "sklearn:digits", train_limit: 100, validation_limit: 60}
model: {name: "builtin:convnet", weights: none}
training: {epochs: 8, batch_size: 20, learning_rate: 1e-6}
space:
  learning_rate: [1e-6, 1e-2, 1e+30]
sampler: {name: grid}
pruner: {name: none}
objective: {rungs: 2}
resources: {devices: cpu, trials_per_device: 1, threads_per_trial: 1}
"""

Run = Callable[..., Result]


class Tiny(NamedTuple):
    """A study that has been run: its file, its database, and what `start` printed."""

    file: Path
    storage: str
    stdout: str
    stderr: str


def program_environment(cache: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SFT_TUNE_")}
    return {**kept, "SFT_TUNE_CACHE": str(cache), "COLUMNS": "80"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    file = folder / "tiny.yaml"
    file.write_text(STUDY)
    storage = str(folder / "tiny.db")
    done = subprocess.run(
        [PROGRAM, "start", file, "--storage", storage],
        capture_output=True,
        text=True,
        cwd=folder,
        env=program_environment(folder / "cache"),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Tiny(file, storage, done.stdout, done.stderr)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, as on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*args: str | Path, code: int = 0, text: str | None = None) -> Result:
        result = CliRunner().invoke(app, [str(arg) for arg in args], input=text)
        assert result.exit_code == code, result.output
        return result

    return invoke
