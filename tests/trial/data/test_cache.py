from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_tune.errors import SftTuneError, UserError
from sft_tune.trial.data.cache import ArrayWriter, key_of, open_or_build, save


def entries(root):
    return sorted(p.name for p in root.iterdir() if p.is_dir())


class Builder:
    """Writes one array; counts how often it was asked."""

    def __init__(self, size=1000):
        self.size, self.calls = size, 0

    def __call__(self, folder):
        self.calls += 1
        save(folder / "x.npy", np.arange(self.size))
        return {"calls": self.calls}


def test_an_entry_is_built_once(tmp_path):
    build = Builder()
    first = open_or_build(tmp_path, "k", build)
    second = open_or_build(tmp_path, "k", build)
    assert first == second
    assert build.calls == 1
    assert (np.load(second.folder / "x.npy") == np.arange(1000)).all()


def truncate(folder):
    (folder / "x.npy").write_bytes((folder / "x.npy").read_bytes()[:-8])


def overwrite(folder):
    data = bytearray((folder / "x.npy").read_bytes())
    data[len(data) // 2] ^= 255
    (folder / "x.npy").write_bytes(data)


DAMAGES = {
    "array truncated": truncate,
    "array overwritten": overwrite,
    "array gone": lambda folder: (folder / "x.npy").unlink(),
    "meta gone": lambda folder: (folder / "meta.json").unlink(),
    "meta torn": lambda folder: (folder / "meta.json").write_text('{"meta": {"calls"'),
    "meta of another shape": lambda folder: (folder / "meta.json").write_text('{"files": 3}'),
    "meta no object": lambda folder: (folder / "meta.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("size", [1000, 500_000])
def test_a_damaged_entry_is_built_again(tmp_path, damage, size):
    build = Builder(size)
    open_or_build(tmp_path, "k", build)
    if damage == "array overwritten" and size > 1000:
        # Large files are sampled; a lost half, as after a power cut, is seen.
        path = tmp_path / "k" / "x.npy"
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    else:
        DAMAGES[damage](tmp_path / "k")
    entry = open_or_build(tmp_path, "k", build)
    assert build.calls == 2
    assert (np.load(entry.folder / "x.npy") == np.arange(size)).all()


def test_what_a_killed_process_left_is_cleared(tmp_path):
    left = tmp_path / ".k.dead"
    left.mkdir()
    (left / "x.npy").write_bytes(b"half")
    open_or_build(tmp_path, "k", Builder())
    assert entries(tmp_path) == ["k"]


def test_a_failing_builder_leaves_nothing(tmp_path):
    def fail(folder):
        save(folder / "x.npy", np.arange(10))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        open_or_build(tmp_path, "k", fail)
    assert entries(tmp_path) == []
    assert open_or_build(tmp_path, "k", Builder()).meta == {"calls": 1}


@pytest.fixture
def small_disk():
    """No file may grow beyond 100 kB: a write fails as on a full disk, in the same calls."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_clear_error_and_nothing_torn_is_left(tmp_path, small_disk):
    with pytest.raises(SftTuneError, match=r"cannot .* under .*: .*Free some.*CACHE") as caught:
        open_or_build(tmp_path, "k", Builder(500_000))
    assert not isinstance(caught.value, UserError)
    assert entries(tmp_path) == []
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert open_or_build(tmp_path, "k", Builder(500_000)).meta == {"calls": 1}


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path):
    (tmp_path / "file").touch()
    for root in ("/proc/nowhere/prepared", tmp_path / "file" / "prepared"):
        with pytest.raises(UserError, match=f"cannot write prepared data under {root}: .*that can"):
            open_or_build(Path(root), "k", Builder())


def test_a_full_disk_while_images_are_decoded(prepare_images, image_folder, cache, small_disk):
    with pytest.raises(SftTuneError, match=r"cannot write prepared data under .*prepared: "):
        prepare_images(image_folder, image_size=512)
    assert entries(cache / "prepared") == []


def test_a_cache_that_is_no_folder_is_explained(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SftTuneError, match="cannot write prepared data"):
        open_or_build(tmp_path / "file", "k", Builder())


def test_a_process_that_comes_while_another_builds_waits_for_it(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from sft_tune.trial.data.cache import open_or_build\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "def build(folder): raise RuntimeError('built twice')\n"
        "print(open_or_build(Path(sys.argv[1]), 'k', build).meta)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout.readline() == "ready\n"

    def build(folder):
        child.stdin.write("go\n")  # from here on the child wants the same entry
        child.stdin.flush()
        save(folder / "x.npy", np.arange(2_000_000))
        return {"by": "parent"}

    open_or_build(tmp_path, "k", build)
    assert child.communicate(timeout=60)[0] == "{'by': 'parent'}\n"
    assert child.returncode == 0


def test_keys_differ_where_fields_differ():
    fields = {"a": 1, "b": [1, 2], "c": None}
    assert key_of(fields) == key_of(dict(reversed(fields.items())))
    others = [{**fields, "a": "1"}, {**fields, "b": [2, 1]}, {"a": 1, "b": [1, 2]}]
    assert len({key_of(f) for f in (fields, *others)}) == 4


@given(
    st.lists(st.integers(0, 5), max_size=5), st.sampled_from(["uint8", "int32", "int64", "float32"])
)
def test_an_array_written_in_parts_is_numpys(tmp_path_factory, parts, kind):
    path = tmp_path_factory.mktemp("parts") / "x.npy"
    pieces = [np.arange(3 * n, dtype=kind).reshape(n, 3) for n in parts]
    whole = np.concatenate([np.empty((0, 3), kind), *pieces])
    with ArrayWriter(path, whole.shape, kind) as writer:
        for piece in pieces:
            writer.append(piece.copy(order="F"))
    read = np.load(path)
    assert read.dtype == whole.dtype
    assert np.array_equal(read, whole)


def test_an_array_that_lacks_parts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="lacks 2 elements"):
        with ArrayWriter(tmp_path / "x.npy", (4,), np.int64) as writer:
            writer.append(np.arange(2))


def test_changed_sources_and_settings_are_prepared_anew(prepare_images, image_folder, cache, make):
    def prepared():
        return {n for n in entries(cache / "prepared")}

    prepare_images(image_folder)
    assert len(prepared()) == 1
    for settings in ({"split_seed": 1}, {"image_size": 9}, {"train_limit": 8}, {"normalize": None}):
        prepare_images(image_folder, **settings)
    assert len(prepared()) == 4  # normalizing is done on the device
    make.picture(200).save(image_folder / "cat" / "003.png")
    data = prepare_images(image_folder)
    assert len(prepared()) == 5
    assert 200 in [*make.values(data.train), *make.values(data.validation)]


def test_the_second_time_no_image_is_opened(prepare_images, image_folder, monkeypatch):
    from PIL import Image

    first = prepare_images(image_folder)
    monkeypatch.setattr(Image, "open", None)
    second = prepare_images(image_folder)
    assert np.array_equal(first.train.pixels, second.train.pixels)
    assert first.facts == second.facts
    json.dumps(second.facts)
