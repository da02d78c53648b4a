from __future__ import annotations

from pathlib import Path

import pytest

from sft_tune.errors import UserError
from sft_tune.run.staging import staged


def fill(folder: Path, text: str, *, force: bool = False) -> None:
    with staged(folder, marker="mark", force=force) as staging:
        (staging / "mark").write_text(text)


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with staged(folder, marker="mark", force=False) as staging:
        (staging / "mark").touch()
        assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["b"]
    assert (folder / "mark").is_file()


def test_an_empty_folder_is_filled_and_stays_the_same_for_who_stands_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    fill(tmp_path / "empty", "x")
    assert Path("mark").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    with pytest.raises(UserError, match="the working directory cannot be replaced"):
        fill(tmp_path / "empty", "y", force=True)


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    fill(tmp_path / "f", "first")
    with pytest.raises(ZeroDivisionError), staged(tmp_path / "f", marker="mark", force=True):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f" / "mark").read_text() == "first"


def test_only_a_folder_that_was_made_so_is_replaced_and_only_by_force(tmp_path: Path) -> None:
    fill(tmp_path / "f", "first")
    with pytest.raises(UserError, match="--force replaces it"):
        fill(tmp_path / "f", "second")
    fill(tmp_path / "f", "second", force=True)
    assert (tmp_path / "f" / "mark").read_text() == "second"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis").touch()
    with pytest.raises(UserError, match="must be empty, or hold an earlier export"):
        fill(tmp_path / "other", "x", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "other"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file is in the way"):
        fill(tmp_path / "file", "x")
    with pytest.raises(UserError, match="cannot be made .* give another"):
        fill(tmp_path / "file" / "below", "x")
