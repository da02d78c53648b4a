"""A training function of one's own whose trials keep their files at a URL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sft_tune.trial.files import RemoteFiles
from tests.remote.test_studies import RUN, URL, rows, start

FUNCTION = """
    import os

    def train(config, folder, report):
        model = folder / "model"
        model.mkdir(exist_ok=True)
        done = int((model / "done").read_text()) if (model / "done").exists() else 0
        (folder / f"began at {done}").touch()
        for i in range(done, 8):
            (model / "done").write_text(str(i + 1))
            (model / "weights").write_bytes(bytes([i + 1]) * 10_000)
            if report((i + 1) / 8, {"score": config["x"] + i}):
                return
"""


def write(folder: Path, place: str) -> Path:
    (folder / "mine.py").write_text(textwrap.dedent(FUNCTION))
    study = {
        "name": "away",
        "task": "python:mine.py:train",
        "space": {"x": [1, 2, 3]},
        "objective": {"metric": "score", "direction": "maximize"},
        "sampler": {"name": "grid"},
        "pruner": {"name": "none"},
        "resources": {
            "devices": "cpu",
            "trials_per_device": 1,
            "threads_per_trial": 1,
            "checkpoint_seconds": 0,
        },
        "storage": {"artifacts": place},
    }
    path = folder / "away.json"
    path.write_text(json.dumps(study))
    return path


@pytest.mark.parametrize("torn", [False, True])
def test_its_folder_goes_on_on_another_machine(
    place: str, torn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, place)
    killed = subprocess.run(
        [sys.executable, "-c", RUN, str(path), URL, place], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    archives = [n for n in RemoteFiles(place).all_sizes() if "trial-00001/resume-files-" in n]
    assert archives
    if torn:
        (tmp_path / "torn").write_bytes(b"torn on its way")
        RemoteFiles(place).put(tmp_path / "torn", max(archives))
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "another machine"))
    start(path, URL)
    assert [(t.number, t.value, t.reason) for t in rows()] == [
        (i, x + 7, "completed") for i, x in enumerate((1, 2, 3))
    ]
    assert rows()[1].attempts == 2
    assert (f"{place}/{max(archives)} is damaged" in (rows()[1].note or "")) is torn
    there = RemoteFiles(place).all_sizes()
    study = archives[0].partition("/")[0]
    for number in range(3):
        files = f"{study}/trial-0000{number}/files"
        assert there[f"{files}/model/weights"] == 10_000 and f"{files}/began at 0" in there
        RemoteFiles(f"{place}/{files}/model").get("weights", tmp_path / "weights")
        assert (tmp_path / "weights").read_bytes() == b"\b" * 10_000
    began = [n.rpartition(" ")[2] for n in there if "trial-00001/files/began at " in n]
    # Where the last archive is torn there may be one before it, or none.
    assert torn or (len(began) == 2 and int(max(began)) >= 1)
    assert not any("resume-" in name for name in there)
    assert list((tmp_path / "another machine" / "trials").glob("*/trial-*")) == []
