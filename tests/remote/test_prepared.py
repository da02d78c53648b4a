"""Prepared data at a URL: the next machine fetches it, and prepares it where that fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from s3fs import S3FileSystem

from sft_tune.trial.data.cache import Entry, open_or_build, save
from sft_tune.trial.files import RemoteFiles
from sft_tune.trial.shared import shared_at
from tests.remote.test_studies import STUDY, URL, rows, start


class Builder:
    """Writes two arrays; counts how often it was asked."""

    calls = 0

    def __call__(self, folder: Path) -> dict[str, str]:
        self.calls += 1
        for name in ("a", "b"):
            save(folder / f"{name}.npy", np.arange(10_000))
        return {"kind": "test"}


def opened(place: str, cache: Path, build: Builder) -> Entry:
    # A process asks once whether an entry is there: each test has a place of its own.
    with shared_at(f"{place}/{cache.parent.name}"):
        return open_or_build(cache, "k", build)


def test_an_entry_is_built_on_one_machine_and_fetched_on_the_next(
    place: str, tmp_path: Path
) -> None:
    build = Builder()
    first = opened(place, tmp_path / "first", build)
    names = ["k/a.npy", "k/b.npy", "k/meta.json"]
    assert list(RemoteFiles(f"{place}/{tmp_path.name}").all_sizes()) == names
    second = opened(place, tmp_path / "second", build)
    assert build.calls == 1 and second.meta == first.meta
    assert (np.load(second.folder / "b.npy") == np.arange(10_000)).all()


def test_what_was_prepared_before_is_shared_too(place: str, tmp_path: Path) -> None:
    build = Builder()
    open_or_build(tmp_path / "first", "k", build)
    opened(place, tmp_path / "first", build)
    opened(place, tmp_path / "second", build)
    assert build.calls == 1


def gone(remote: RemoteFiles, folder: Path) -> None:
    remote.remove("b.npy")


def unsealed(remote: RemoteFiles, folder: Path) -> None:
    remote.remove("meta.json")


def put(name: str, contents: bytes) -> Callable[[RemoteFiles, Path], None]:
    def damage(remote: RemoteFiles, folder: Path) -> None:
        (folder / "damage").write_bytes(contents)
        remote.put(folder / "damage", name)

    return damage


@pytest.mark.parametrize(
    "damage",
    [gone, unsealed, put("b.npy", b"torn"), put("meta.json", b"{"), put("meta.json", b"[]")],
)
def test_what_is_broken_there_is_prepared_here_and_mended(
    s3: str, tmp_path: Path, damage: Callable[[RemoteFiles, Path], None]
) -> None:
    build = Builder()
    opened(s3, tmp_path / "first", build)
    damage(RemoteFiles(f"{s3}/{tmp_path.name}/k"), tmp_path)
    opened(s3, tmp_path / "second", build)
    assert build.calls == 2
    opened(s3, tmp_path / "third", build)
    assert build.calls == 2
    assert [path.name for path in (tmp_path / "second").glob(".k.*")] == []


def test_a_server_that_is_away_costs_no_more_than_preparing(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()
    build = Builder()
    entry = opened(s3, tmp_path / "first", build)
    assert build.calls == 1 and np.load(entry.folder / "a.npy").size == 10_000
    assert "prepared data is not fetched but prepared: cannot list" in caplog.text
    assert "prepared data is not shared: cannot" in caplog.text


PROCESS = """
import sys
from pathlib import Path
import numpy as np
from sft_tune.trial.data.cache import open_or_build, save
from sft_tune.trial.shared import shared_at
url, cache = sys.argv[1:]

def build(folder):
    print("built", flush=True)
    sys.stdin.readline()
    save(folder / "a.npy", np.arange(200_000))
    return {}

with shared_at(url):
    open_or_build(Path(cache), "k", build)
"""


def test_two_machines_at_once_do_no_harm(place: str, tmp_path: Path) -> None:
    url = f"{place}/{tmp_path.name}"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, url, str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "second")
    ]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "built\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0
    build = Builder()
    entry = opened(place, tmp_path / "third", build)
    assert build.calls == 0 and np.load(entry.folder / "a.npy").size == 200_000


def draw(folder: Path) -> None:
    """Write a folder of images that a network can tell apart."""
    dice = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 200)):
        (folder / "images" / label).mkdir(parents=True)
        for i in range(40):
            pixels = dice.integers(level - 50, level + 50, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / label / f"{i}.png")


def test_a_study_s_next_machine_does_not_prepare_its_data_again(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    draw(here)
    study = {
        **STUDY,
        "data": {"source": "images", "test_fraction": 0.2},
        "training": {**STUDY["training"], "epochs": 1},
        "objective": {"rungs": 1},
        "sampler": {"name": "random"},
        "space": {"learning_rate": {"low": 1e-4, "high": 1e-2}},
        "budget": {"trials": 1},
        "storage": {"artifacts": place},
    }
    path = here / "away.json"
    path.write_text(json.dumps(study))
    start(path, URL)
    (entry,) = {p.split("/")[2] for p in RemoteFiles(place).all_sizes() if "/prepared/" in p}
    # Nothing of the entry but its own words tells on which machine it was made.
    (trial,) = rows()
    assert trial.checkpoint is not None
    remote = RemoteFiles(f"{trial.checkpoint.rsplit('/', 2)[0]}/prepared/{entry}")
    remote.get("meta.json", tmp_path / "meta.json")
    sealed = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**sealed, "about": "of the first machine"}))
    remote.put(tmp_path / "meta.json", "meta.json")

    # The copies have other modification times, and another place.
    shutil.copytree(here, there, copy_function=shutil.copyfile)
    for file in (there / "images").rglob("*.png"):
        os.utime(file, (1, 1))
    shutil.rmtree(here / "images")
    monkeypatch.setenv("SFT_TUNE_ROOT", str(there))
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "another machine"))
    path.write_text(json.dumps({**study, "budget": {"trials": 2}}))
    start(path, URL)
    assert [row.reason for row in rows()] == ["completed"] * 2
    (meta,) = (tmp_path / "another machine" / "prepared").glob("*/meta.json")
    assert json.loads(meta.read_text())["about"] == "of the first machine"
