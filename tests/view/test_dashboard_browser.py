"""The dashboard in a real browser: its pages open and show this study's numbers, without errors."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from sft_tune.store.database import Database
from sft_tune.view import dashboard
from tests.view.dashboards import searched_study

TOKEN = "a-token-of-tests"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a dashboard of a searched study answers, behind a token."""
    folder = tmp_path_factory.mktemp("served")
    db = Database.open(str(folder / "x.db"), create=True)
    searched_study(db, folder / "runs")
    found: list[str] = []
    listening = threading.Event()

    def ready(place: str) -> None:
        found.append(place)
        listening.set()

    # As a daemon: `serve_forever` ends with the process.
    threading.Thread(
        target=dashboard.serve_dashboard,
        args=(db,),
        kwargs={"port": 0, "token": TOKEN, "read_only": True, "ready": ready},
        daemon=True,
    ).start()
    assert listening.wait(30)
    yield f"http://me:{TOKEN}@{urlsplit(found[0]).netloc}"


def shows(browser: Any, *texts: str) -> str:
    """Wait until the page shows all of ``texts``; return the whole of its text."""
    text = ""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        text = browser.execute_script("return document.body ? document.body.innerText : ''")
        if all(part in text for part in texts):
            return text
        time.sleep(0.2)
    raise AssertionError(f"the page does not show {texts}, but: {text}")


def test_its_pages_show_the_study_and_no_error(browser: Any, address: str) -> None:
    # The browser remembers the password, as after its own question for it.
    browser.get(f"{address}/api/meta")
    address = f"http://{urlsplit(address).netloc.rpartition('@')[2]}"
    browser.get(f"{address}/dashboard")
    shows(browser, "digits-study")
    browser.get_log("browser")
    for page, texts in (
        ("studies/1", ("digits-study", "0.8621", "How 3 trials learned")),
        ("studies/1/analytics", ("digits-study",)),
        ("studies/1/trials?numbers=0", ("completed", "--trial 0", "configuration.json", "log.txt")),
        ("studies/1/trials?numbers=1", ("pruned", "evidence *1*")),
        ("studies/1/note", ("name: digits-study",)),
    ):
        browser.get(f"{address}/dashboard/{page}")
        shows(browser, *texts)
        found = [m for m in browser.get_log("browser") if m["level"] == "SEVERE"]
        assert found == [], page


def test_without_the_token_nothing_is_seen(address: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(address).netloc.rpartition("@")[2], timeout=30)
    connection.request("GET", "/dashboard")
    answer = connection.getresponse()
    assert answer.status == 401
    assert b"digits-study" not in answer.read()
