from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft_tune.trial import checkpoint

TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "a.step": torch.tensor(7),
    "a.half": torch.ones(3, dtype=torch.bfloat16),
    "b.mask": torch.tensor([True, False]),
    "b.empty": torch.zeros(0),
}
HEADER = {"step": 3, "best": None, "values": [0.1, 1e-300], "names": {"é": "ü"}}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, TENSORS, HEADER)
    tensors, header = checkpoint.read(path)
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and tensors[name].shape == tensor.shape
        assert torch.equal(tensors[name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_whom_the_user_lets_read_files_may_read_it(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    checkpoint.write(tmp_path / "c.safetensors", {"a": torch.ones(2)}, {})
    assert (tmp_path / "c.safetensors").stat().st_mode == ordinary.stat().st_mode


def test_tied_and_transposed_tensors_are_written(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    path = tmp_path / "x.safetensors"
    checkpoint.write(path, {"one": base, "tied": base, "part": base[1], "turned": base.T}, {})
    tensors, _ = checkpoint.read(path)
    assert torch.equal(tensors["tied"], base)
    assert torch.equal(tensors["part"], base[1])
    assert torch.equal(tensors["turned"], base.T)


def test_the_checkpoint_before_is_kept(tmp_path: Path) -> None:
    path, previous = tmp_path / "x.safetensors", tmp_path / "x.previous.safetensors"
    for step in (1, 2, 3):
        checkpoint.write(path, TENSORS, {"step": step}, previous=previous)
    assert checkpoint.read(path)[1] == {"step": 3}
    assert checkpoint.read(previous)[1] == {"step": 2}


@given(data=st.data())
def test_damage_anywhere_is_found(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    checkpoint.write(path, TENSORS, HEADER)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1), label="cut")
    bit = data.draw(st.integers(0, len(whole) * 8 - 1), label="bit")
    flipped = bytearray(whole)
    flipped[bit // 8] ^= 1 << bit % 8
    for content in (whole[:cut], bytes(flipped)):
        path.write_bytes(content)
        try:
            tensors, header = checkpoint.read(path)
        except ValueError:
            continue
        # A flip in what nothing depends on (the word "pt", padding) may pass, unnoticed or not.
        assert header == HEADER
        assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not written by sft_tune"):
        checkpoint.read(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError):
        checkpoint.read(tmp_path / "y.safetensors")


def test_the_last_good_one_is_found(tmp_path: Path) -> None:
    path, previous = tmp_path / "x.safetensors", tmp_path / "x.previous.safetensors"
    assert checkpoint.read_last(path, previous) == (None, [])
    checkpoint.write(path, TENSORS, {"step": 1}, previous=previous)
    checkpoint.write(path, TENSORS, {"step": 2}, previous=previous)
    found, wrong = checkpoint.read_last(path, previous)
    assert found is not None and found[1] == {"step": 2} and wrong == []
    path.write_bytes(b"torn")
    found, wrong = checkpoint.read_last(path, previous)
    assert found is not None and found[1] == {"step": 1} and len(wrong) == 1
    path.unlink()
    found, wrong = checkpoint.read_last(path, previous)
    assert found is not None and found[1] == {"step": 1} and wrong == []


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    path, previous = tmp_path / "x.safetensors", tmp_path / "x.previous.safetensors"
    checkpoint.write(path, TENSORS, {"step": 1}, previous=previous)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            checkpoint.write(path, {"a": torch.zeros(10_000)}, {"step": 2}, previous=previous)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert checkpoint.read(path)[1] == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_folder_that_is_gone_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        checkpoint.write(tmp_path / "gone" / "x.safetensors", TENSORS, {})


@pytest.mark.parametrize("moment", ["save_file", "os.replace"])
def test_dying_while_writing_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    path, previous = tmp_path / "x.safetensors", tmp_path / "x.previous.safetensors"
    for step in (1, 2):
        checkpoint.write(path, TENSORS, {"step": step}, previous=previous)

    def die(*args: object, **kwargs: object) -> None:
        if moment == "save_file" or str(args[1]) == str(path):
            raise KeyboardInterrupt
        os.rename(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(f"sft_tune.trial.checkpoint.{moment}", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(path, TENSORS, {"step": 3}, previous=previous)
    monkeypatch.undo()
    found, wrong = checkpoint.read_last(path, previous)
    assert found is not None and found[1] == {"step": 2} and wrong == []
    checkpoint.write(path, TENSORS, {"step": 3}, previous=previous)
    assert checkpoint.read(path)[1] == {"step": 3}
