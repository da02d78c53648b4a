from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sft_tune.errors import UserError
from sft_tune.run.messages import cache_folder
from sft_tune.trial.kept import hold, prepared_root
from tests.cli.conftest import Run

HOLD = (
    "import sys, pathlib\n"
    "from sft_tune.trial.kept import hold\n"
    "hold(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
    "print('held', flush=True)\n"
    "sys.stdin.read()"
)


def entry(key: str, size: int, days: float, about: str = "digits: features of resnet18") -> Path:
    """Make an entry that was last used so many days ago."""
    root = prepared_root(cache_folder())
    folder = root / key
    folder.mkdir(parents=True)
    sealed = json.dumps({"meta": {}, "files": {}, "about": about})
    (folder / "meta.json").write_text(sealed)
    (folder / "train.npy").write_bytes(b"x" * (size - len(sealed)))
    used = root / f"{key}.used"
    used.touch()
    os.utime(used, (time.time() - 86_400 * days,) * 2)
    return folder


def test_the_cache_is_listed_and_cleared_but_not_what_is_in_use(run: Run) -> None:
    assert run("cache").stdout.startswith("0 entries, 0 B in ")
    old, new, used = entry("old", 5000, 40), entry("new", 3000, 0), entry("used", 2000, 50)
    (used.parent / ".torn.1a2b").mkdir()
    program = subprocess.Popen(
        [sys.executable, "-c", HOLD, used.parent, "used"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    with program.stdin, program.stdout:
        assert program.stdout.readline() == b"held\n"
        os.utime(used.parent / "used.used", (time.time() - 86_400 * 50,) * 2)
        lines = [" ".join(line.split()) for line in run("cache").stdout.splitlines()]
        assert lines[0] == "entry size last used what"
        assert "old 5.0 kB 40 days ago digits: features of resnet18" in lines
        assert "used 2.0 kB in use digits: features of resnet18" in lines
        assert ".torn.1a2b 0 B today unfinished" in lines
        refused = run("cache", "clear", "--json", code=2)
        assert refused.stderr == "error: --json does not ask; give --yes to clear\n"
        asked = run("cache", "clear", "--older-than", "30", text="n\n", code=1)
        assert "delete 1 of 2 entries (5.0 kB)?" in asked.stdout
        assert old.exists()
        done = run("cache", "clear", "--older-than", "30", "--yes")
        assert done.stdout == "1 deleted, 5.0 kB freed; 1 in use stay\n"
        assert (old.exists(), new.exists(), used.exists()) == (False, True, True)
    assert program.wait() == 0
    told = json.loads(run("cache", "list", "--json").stdout)
    assert {e["key"]: e["in_use"] for e in told["entries"]} == dict.fromkeys(
        ("new", "used", ".torn.1a2b"), False
    )
    assert len(json.loads(run("cache", "clear", "--yes", "--json").stdout)["deleted"]) == 3
    assert not list(used.parent.glob("*/"))


def build(folder: Path) -> dict[str, int]:
    import numpy as np

    from sft_tune.trial.data.cache import save

    save(folder / "a.npy", np.zeros(1000, np.uint8))
    return {}


def test_a_full_cache_loses_what_was_used_least_recently(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft_tune.trial.data.cache import open_or_build

    old, newer, held = entry("old", 5000, 3), entry("newer", 5000, 0), entry("held", 5000, 4)
    root = old.parent
    hold(root, "held")
    os.utime(root / "held.used", (0, 0))
    monkeypatch.setenv("SFT_TUNE_CACHE_SIZE", "0.012 MB")
    made = open_or_build(root, "made", build, about="what it is").folder
    assert [folder.exists() for folder in (old, newer, held, made)] == [False, True, True, True]
    assert "what it is" in run("cache").stdout
    assert run("cache").stdout.endswith("at most 12.0 kB are kept, as SFT_TUNE_CACHE_SIZE says\n")
    monkeypatch.setenv("SFT_TUNE_CACHE_SIZE", "0.006 MB")
    open_or_build(root, "another", build)
    assert [newer.exists(), held.exists()] == [False, True]  # used in this hour: the limit is given
    monkeypatch.setenv("SFT_TUNE_CACHE_SIZE", "much")
    with pytest.raises(UserError, match="must be a size like 20GB or 500MB"):
        open_or_build(root, "more", build)


def test_nobody_says_how_much_is_kept_and_it_is_a_quarter_of_the_disk(run: Run) -> None:
    from sft_tune.trial.data.cache import open_or_build

    hour, minutes = 1 / 24, 50 / (24 * 60)
    old, older, new = entry("old", 5000, hour), entry("older", 5000, 2), entry("new", 5000, minutes)
    root = old.parent
    told = json.loads(run("cache", "--json").stdout)
    free = shutil.disk_usage(root).free
    assert told["limit"] == pytest.approx(min(free / 4, 10**12), rel=0.1)
    assert "a quarter of what it and the free space are; SFT_TUNE_CAC" in run("cache").stdout
    open_or_build(root, "made", build)
    assert all(folder.exists() for folder in (old, older, new))
    # Holes, of which the disk has nothing; old and new together are over the limit, old alone too.
    huge = min(free, 4 * 10**12)
    for folder in (old, new):
        with (folder / "train.npy").open("r+b") as file:
            file.truncate(huge)
    open_or_build(root, "another", build)
    assert [folder.exists() for folder in (old, older, new)] == [False, False, True]
