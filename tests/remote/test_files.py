from __future__ import annotations

from pathlib import Path

import pytest
from s3fs import S3FileSystem

from sft_tune.errors import StorageError
from sft_tune.trial.files import RemoteFiles, clear_resume, copy_of, files_of


def test_files_go_there_and_come_back(place: str, tmp_path: Path) -> None:
    remote = RemoteFiles(f"{place}/study/trial-00001")
    assert remote.sizes() == {}
    for name, text in (("a.txt", "one"), ("b.txt", "three")):
        (tmp_path / name).write_text(text)
        remote.put(tmp_path / name, name)
    assert remote.sizes() == {"a.txt": 3, "b.txt": 5}
    assert RemoteFiles(place).all_sizes() == {
        "study/trial-00001/a.txt": 3,
        "study/trial-00001/b.txt": 5,
    }
    remote.get("a.txt", tmp_path / "back.txt")
    assert (tmp_path / "back.txt").read_text() == "one"
    (tmp_path / "a.txt").write_text("other")
    remote.put(tmp_path / "a.txt", "a.txt")
    remote.remove("b.txt")
    remote.remove("b.txt")
    assert files_of(remote.url).sizes() == {"a.txt": 5}
    RemoteFiles(f"{place}/study").remove_all()
    assert RemoteFiles(place).all_sizes() == {}


def test_what_is_missing_leaves_nothing_here(place: str, tmp_path: Path) -> None:
    remote = RemoteFiles(place)
    with pytest.raises(FileNotFoundError):
        remote.get("none", tmp_path / "none")
    assert list(tmp_path.glob("none*")) == []


def test_only_what_a_resume_needs_is_cleared(place: str, tmp_path: Path) -> None:
    remote = RemoteFiles(place)
    (tmp_path / "x").write_text("x")
    for name in ("best.safetensors", "resume-000000004.safetensors", "best.safetensors.1a.tmp"):
        remote.put(tmp_path / "x", name)
    clear_resume(remote)
    assert list(remote.sizes()) == ["best.safetensors"]


def test_a_copy_is_fetched_once_for_each_version(place: str, tmp_path: Path) -> None:
    remote, file = RemoteFiles(place), tmp_path / "w"
    file.write_text("first")
    remote.put(file, "w")
    first = copy_of(f"{place}/w", tmp_path / "cache")
    assert first.read_text() == "first"
    assert copy_of(f"{place}/w", tmp_path / "cache") == first
    file.write_text("second, longer")
    remote.put(file, "w")
    assert copy_of(f"{place}/w", tmp_path / "cache").read_text() == "second, longer"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://x", "processes must be able to share it"),
        ("nonsense://x", "a URL that fsspec can open .* nonsense"),
    ],
)
def test_a_url_that_cannot_serve_is_refused(url: str, said: str) -> None:
    with pytest.raises(StorageError, match=said):
        RemoteFiles(url)


def test_a_server_that_is_away_is_an_os_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()
    with pytest.raises(OSError, match=f"cannot list {s3}/away"):
        RemoteFiles(f"{s3}/away").sizes()
