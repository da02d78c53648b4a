"""A disk that fills up in the middle of a study: said, no trial lost, and on when there is room."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.run.conftest import study_file as study_file
from tests.run.test_kill import PROGRAM, result

SIZE = 16 * 2**20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own, in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size={SIZE},uid={os.getuid()},gid={os.getgid()}"
    try:
        subprocess.run(
            [*root, "mount", "-t", "tmpfs", "-o", options, "none", str(folder)],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs to mount a file system, which this user may not: {error}")
    yield folder
    subprocess.run([*root, "umount", str(folder)], check=True)


class Filler:
    """Whatever is free on the small disk, taken at once and again, until it is removed.

    Once is not enough: a checkpoint that finds no room gives back what of it was written, and in
    that space the next one may fit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)

    def begin(self) -> None:
        """Return when not a byte more goes on the disk, and see to it that none does later."""
        if self._thread.ident is None:
            self._take()
            self._thread.start()

    def end(self) -> None:
        """Give everything back."""
        if self._thread.ident is not None:
            self._over.set()
            self._thread.join()
            self.path.unlink(missing_ok=True)

    def _take(self) -> None:
        with self.path.open("ab", buffering=0) as file:
            for block in (2**16, 2**10, 1):
                try:
                    while file.tell() < SIZE:  # never more, should it be another disk
                        file.write(b"x" * block)
                except OSError:
                    continue

    def _fill(self) -> None:
        while not self._over.wait(0.001):
            self._take()


@pytest.fixture
def filler(disk: Path) -> Iterator[Filler]:
    """What fills the disk, once it has begun, and gives it free at the end of the test."""
    one = Filler(disk / "filler")
    yield one
    one.end()


def start(path: Path, url: str, watch: Callable[[str], None]) -> tuple[int, str]:
    """Run the study, each line of its output to ``watch``; return its exit status and output."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "start", "--plain", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "SFT_TUNE_STORAGE": url},
    )
    lines = []
    assert process.stdout is not None
    with process.stdout as output:
        for line in output:
            lines.append(line)
            watch(line)
    return process.wait(), "".join(lines)


@pytest.mark.mounts
@pytest.mark.parametrize("database_too", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_loses_no_trial(
    study_file: Callable[..., Path],
    disk: Path,
    filler: Filler,
    tmp_path: Path,
    database_too: bool,
) -> None:
    def watch(line: str) -> None:
        if "trial 1 at 50 %" in line:
            filler.begin()

    # Enough trials to come that one meets the full disk, however late a line of the output is read.
    sections = {"budget": {"trials": 6}, "training": {"epochs": 8}, "sampler": {"name": "grid"}}
    space = {"learning_rate": [1e-3, 2e-3, 3e-3, 5e-3, 8e-3, 1e-2]}

    calm = f"sqlite:///{tmp_path}/calm.db"
    path = study_file(**sections, space=space)
    assert start(path, calm, lambda line: None)[0] == 0
    place = {"storage": {"artifacts": str(disk / "runs")}}
    path = study_file(**sections, space=space, **place)
    url = f"sqlite:///{disk if database_too else tmp_path}/full.db"

    status, output = start(path, url, watch)
    assert status == 2, output
    assert "Traceback" not in output
    said = " ".join(output.split())
    # Weights or database: whichever is written first has no room.
    if not (database_too and "the disk is full; make room and start again" in said):
        assert "the best weights cannot be written" in said
        assert "No space left on device" in said
        assert "free space, then start again" in said
    # As long as there is none it says so again, and costs no trial an attempt.
    status, output = start(path, url, lambda line: None)
    assert status == 2 and "Traceback" not in output, output

    filler.end()
    status, output = start(path, url, lambda line: None)
    assert status == 0, output
    assert result(url) == result(calm)
