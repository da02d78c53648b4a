from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import pytest

from sft_tune.errors import UserError
from sft_tune.store.database import Database
from sft_tune.view.dashboard import dashboard_app, serve_dashboard


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database.open(str(tmp_path / "x.db"), create=True)
    yield database
    database.dispose()


def ask(db: Database, path: str, **headers: str) -> tuple[str, bytes]:
    environ = {"PATH_INFO": path, **headers}
    setup_testing_defaults(environ)
    said: list[str] = []
    body = dashboard_app(db)(environ, lambda status, _headers, _info=None: said.append(status))
    return said[0], b"".join(body)


def test_an_empty_database_has_a_dashboard(db: Database) -> None:
    status, body = ask(db, "/api/studies", HTTP_HOST="127.0.0.1:8080")
    assert status.startswith("200")
    assert json.loads(body) == {"study_summaries": []}


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "localhost:8080"])
def test_pages_of_this_machine_are_answered(db: Database, host: str) -> None:
    assert ask(db, "/api/studies", HTTP_HOST=host)[0].startswith("200")
    own = ask(db, "/api/studies", HTTP_HOST=host, HTTP_ORIGIN=f"http://{host}")
    assert own[0].startswith("200")


@pytest.mark.parametrize(
    "headers",
    [
        {"HTTP_HOST": "evil.example:8080"},
        {"HTTP_HOST": "127.0.0.1.evil.example"},
        {"HTTP_HOST": ""},
        {"HTTP_HOST": "127.0.0.1:8080", "HTTP_ORIGIN": "https://evil.example"},
        {"HTTP_HOST": "127.0.0.1:8080", "HTTP_ORIGIN": "null"},
    ],
)
def test_a_page_of_elsewhere_in_this_machines_browser_is_refused(
    db: Database, headers: dict[str, str]
) -> None:
    assert ask(db, "/api/studies", **headers)[0] == "403 Forbidden"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org"])
def test_an_address_that_others_reach_is_refused_with_the_reason(db: Database, host: str) -> None:
    with pytest.raises(UserError, match="no authentication"):
        serve_dashboard(db, host=host, ready=lambda address: None)


def test_a_port_in_use_is_the_users_to_change(db: Database) -> None:
    listening = threading.Event()
    found: list[str] = []

    class EndedError(Exception):
        pass

    def ready(address: str) -> None:
        found.append(address)
        host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
        with pytest.raises(UserError, match=r"--port: cannot listen on 127\.0\.0\.1"):
            serve_dashboard(db, port=int(port), ready=lambda address: None)
        listening.set()
        raise EndedError

    with pytest.raises(EndedError):
        serve_dashboard(db, port=0, ready=ready)
    assert listening.is_set()
    # The server has let go of its port.
    connection = http.client.HTTPConnection(found[0].removeprefix("http://").rstrip("/"))
    with pytest.raises(ConnectionRefusedError):
        connection.request("GET", "/")
