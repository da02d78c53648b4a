"""Studies whose machines share only a database and a URL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sft_tune
from sft_tune.run.events import Event, RungReached
from sft_tune.run.study import start_study
from sft_tune.spec.load import load_study
from sft_tune.store import reads
from sft_tune.store.database import Database
from sft_tune.store.finalist_rows import finalist_rows
from sft_tune.trial.files import RemoteFiles

URL = "sqlite:///t.db"
MAIN = "from sft_tune.cli import main; main()"
STUDY: dict[str, Any] = {
    "name": "away",
    "task": "image-classification",
    "data": {"source": "sklearn:digits", "train_limit": 64, "validation_limit": 64},
    "model": {"name": "builtin:convnet", "weights": "none"},
    "training": {"epochs": 8, "batch_size": 16, "learning_rate": 3e-3, "augment": "flip_crop"},
    "space": {"learning_rate": [1e-4, 1e-3, 3e-3]},
    "objective": {"rungs": 8},
    "sampler": {"name": "grid"},
    "pruner": {"name": "none"},
    "resources": {
        "devices": "cpu",
        "trials_per_device": 1,
        "threads_per_trial": 1,
        "checkpoint_seconds": 0,
        "keep_checkpoints": 2,
    },
}


def write(tmp_path: Path, place: str) -> Path:
    path = tmp_path / "away.json"
    path.write_text(json.dumps({**STUDY, "storage": {"artifacts": place}}))
    return path


def command(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(url: str = URL) -> list[reads.TrialRow]:
    db = Database.open(url, create=False)
    try:
        return reads.trial_rows(db, "away")
    finally:
        db.dispose()


def start(path: Path, url: str, listen: Any = lambda event: None) -> None:
    db = Database.open(url, create=True)
    try:
        start_study(load_study(path), db, notify=listen)
    finally:
        db.dispose()


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_a_study_keeps_the_best_weights_there_and_nothing_here(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(write(tmp_path, place), URL)
    trials = rows()
    assert [t.reason for t in trials] == ["completed"] * 3
    kept = [t for t in trials if t.checkpoint is not None]
    assert len(kept) == 2
    best = max(trials, key=lambda t: t.value or 0.0)
    assert best.checkpoint is not None and best.checkpoint.startswith(f"{place}/away-")
    there = RemoteFiles(best.checkpoint.rpartition("/")[0])
    assert list(there.sizes()) == ["best.safetensors", "config.json", "log.txt"]
    assert list((tmp_path / "cache" / "trials").glob("*/trial-*")) == []

    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "another machine"))
    found = sft_tune.open_study("away", URL).best
    assert found.checkpoint == best.checkpoint
    with torch.no_grad():
        assert found.load_model()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    shown = json.loads(command("show", "away", str(best.number), "--json", "--storage", URL))
    assert f"{there.url}/best.safetensors" in shown["files"]
    told = json.loads(command("best", "away", "--json", "--storage", URL))
    assert told["checkpoint"] == best.checkpoint
    assert command("prune-checkpoints", "away", "--storage", URL).startswith("1 checkpoint deleted")
    weights = [name for name in RemoteFiles(place).all_sizes() if name.endswith(".safetensors")]
    assert len(weights) == 1
    assert "deleted" in command("delete", "away", "--yes", "--storage", URL)
    assert RemoteFiles(place).all_sizes() == {}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the database of the study as it ends undisturbed, on this machine alone."""
    folder = tmp_path_factory.mktemp("calm")
    url = f"sqlite:///{folder}/t.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFT_TUNE_CACHE", str(folder / "cache"))
        start(write(folder, str(folder / "runs")), url)
    return url


RUN = """
import os, signal, sys
from pathlib import Path
from sft_tune.run.events import RungReached
from sft_tune.run.study import start_study
from sft_tune.spec.load import load_study
from sft_tune.store.database import Database
from sft_tune.store.finalist_rows import finalist_rows
from sft_tune.trial.files import RemoteFiles
path, url, place = sys.argv[1:]

def listen(event):
    if isinstance(event, RungReached) and event.number == 1 and event.progress >= 50:
        names = RemoteFiles(place).all_sizes()
        if any("trial-00001/resume-" in name for name in names):
            os.kill(os.getpid(), signal.SIGKILL)

start_study(load_study(Path(path)), Database.open(url, create=True), notify=listen)
"""


@pytest.mark.parametrize(("place", "torn"), [("s3", True), ("file", False)], indirect=["place"])
def test_a_runner_that_is_lost_is_followed_by_another_machine(
    place: str, torn: bool, calm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, place)
    killed = subprocess.run(
        [sys.executable, "-c", RUN, str(path), URL, place], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    there = {n for n in RemoteFiles(place).all_sizes() if "trial-00001/resume-" in n}
    assert there
    newest = max(there)
    if torn:
        (tmp_path / "torn").write_bytes(b"torn on its way")
        RemoteFiles(place).put(tmp_path / "torn", newest)
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "another machine"))
    at: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, RungReached) and event.number == 1:
            at.append(event.progress)

    start(path, URL, listen)
    found = {t.number: (t.value, t.metrics, t.params, t.state) for t in rows()}
    assert found == {t.number: (t.value, t.metrics, t.params, t.state) for t in rows(calm)}
    trial = rows()[1]
    assert trial.attempts == 2
    if torn:
        assert f"{place}/{newest}" in (trial.note or "").replace(" is damaged", "")
    else:
        assert at[0] > 13  # it did not begin anew
    assert not any("resume-" in name for name in RemoteFiles(place).all_sizes())
    log = next(n for n in RemoteFiles(place).all_sizes() if n.endswith("trial-00001/log.txt"))
    assert log


CONFIRM = """
import os, signal, sys
from sft_tune.run.confirm import confirm_study
from sft_tune.run.events import RungReached
from sft_tune.spec.search import ConfirmSpec
from sft_tune.store.database import Database
from sft_tune.store.records import find_study
from sft_tune.trial.files import RemoteFiles
url, place, kill = sys.argv[1:]

def listen(event):
    if kill == "kill" and isinstance(event, RungReached) and event.progress >= 50:
        if any("/seed-" in name and "/resume-" in name for name in RemoteFiles(place).all_sizes()):
            os.kill(os.getpid(), signal.SIGKILL)

db = Database.open(url, create=False)
confirm_study(find_study(db, "away"), db, ConfirmSpec(top=1, seeds=2), notify=listen)
"""


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_a_confirmation_goes_on_on_another_machine(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {**STUDY["data"], "test_fraction": 0.2}
    training = {**STUDY["training"], "learning_rate": 1e-3}
    path = tmp_path / "away.json"
    found = {}
    for where in (str(tmp_path / "runs"), place):
        url = f"sqlite:///{tmp_path}/{'s3' if where == place else 'calm'}.db"
        changes = {"data": data, "training": training, "storage": {"artifacts": where}}
        changes["space"] = {"learning_rate": [1e-3]}
        path.write_text(json.dumps({**STUDY, **changes}))
        start(path, url)
        program = [sys.executable, "-c", CONFIRM, url, where]
        if where == place:
            killed = subprocess.run([*program, "kill"])
            assert killed.returncode == -signal.SIGKILL
            monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "another machine"))
        subprocess.run([*program, "calmly"], check=True)
        db = Database.open(url, create=False)
        try:
            runs = finalist_rows(db, "away")
        finally:
            db.dispose()
        found[where] = sorted((r.number, r.seed, r.reason, r.metrics, r.test_metrics) for r in runs)
    assert found[place] == found[str(tmp_path / "runs")]
    assert {(reason, "accuracy" in tested) for *_, reason, _, tested in found[place]} == {
        ("completed", True)
    }
    assert max(run.attempts for run in runs) == 2
    there = [name for name in RemoteFiles(place).all_sizes() if "/seed-" in name]
    assert {name.rpartition("/")[2] for name in there} == {"config.json", "log.txt"}
    assert "fresh seeds" in command("confirm", "away", "--show", "--storage", url)


def test_what_cannot_be_copied_is_noted_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, as it were: a file stands where a folder has to be."""
    from sft_tune.trial import mirror as module
    from sft_tune.trial.mirror import Mirror
    from sft_tune.trial.paths import TrialPaths

    monkeypatch.setattr(module, "PATIENCE", (0.01,))
    paths = TrialPaths(tmp_path / "here").create()
    (tmp_path / "there").mkdir()
    mirror = Mirror(f"file://{tmp_path}/there/trial", paths)
    (tmp_path / "there" / "trial").write_text("in the way")
    paths.resume.write_bytes(b"4")
    mirror.saved(4)
    mirror.wait()
    (complaint,) = mirror.complaints()
    assert "not copied: cannot write resume-000000004.safetensors to file://" in complaint
    paths.best.write_bytes(b"best")
    with pytest.raises(OSError, match="cannot write best.safetensors"):
        mirror.put_best()
    mirror.close(ended=False)
    assert paths.resume.exists()
    os.unlink(tmp_path / "there" / "trial")
    for step in (8, 12, 16):
        paths.resume.write_bytes(str(step).encode())
        mirror.saved(step)
        mirror.wait()
    assert mirror.complaints() == []
    assert list(RemoteFiles(mirror.url).sizes()) == [
        "resume-000000012.safetensors",
        "resume-000000016.safetensors",
    ]
    mirror.close(ended=False)
    assert not paths.root.exists()
