"""What all tests share: where the real data lies, and the rule that CI may not skip."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

SHARED = Path(__file__).resolve().parents[2] / "shared"
# Two processes of tests share the cores; threads that wait for one another would waste them.
# (Workers of studies get the number of threads that their study says.)
os.environ.setdefault("OMP_NUM_THREADS", "1")

MUST_NOT_SKIP = os.environ.get("SFT_TUNE_TEST_NO_SKIP") == "1"


# The same examples each time: a test that fails must fail again.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models; skips the test where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the real data of {SHARED}, which is absent")
    return SHARED


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test an empty working directory, and no settings of the person who runs it."""
    monkeypatch.chdir(tmp_path)
    for name in _settings():
        monkeypatch.delenv(name)
    monkeypatch.setenv("SFT_TUNE_CACHE", str(tmp_path / "cache"))
    yield
    for name in _settings():  # also what the code under test has set for its own process
        os.environ.pop(name, None)


def _settings() -> list[str]:
    return [name for name in os.environ if name.startswith("SFT_TUNE_") and "TEST" not in name]


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> pytest.TestReport:
    """Turn a skip into a failure where `SFT_TUNE_TEST_NO_SKIP=1` says that all can run."""
    report = pytest.TestReport.from_item_and_call(item, call)
    may = item.get_closest_marker("gpu") or item.get_closest_marker("mounts")
    if report.skipped and MUST_NOT_SKIP and not may:
        report.outcome = "failed"
        report.longrepr = f"skipped, but SFT_TUNE_TEST_NO_SKIP=1 forbids it: {report.longrepr}"
    return report
