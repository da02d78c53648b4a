from __future__ import annotations

import base64
from collections.abc import Iterator
from wsgiref.util import setup_testing_defaults

import pytest
from optuna_dashboard._app import create_app

from sft_tune.errors import UserError
from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import open_optuna_storage
from sft_tune.view.dashboard import dashboard_app
from sft_tune.view.dashboard_guard import READING

TOKEN = "correct horse battery"


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database.open(str(tmp_path_factory.mktemp("guard") / "x.db"), create=True)
    yield database
    database.dispose()


def ask(
    db: Database, path: str, method: str = "GET", *, read_only: bool = False, **headers: str
) -> tuple[str, dict[str, str]]:
    token = headers.pop("token", None)
    environ = {"PATH_INFO": path, "REQUEST_METHOD": method, "HTTP_HOST": "127.0.0.1", **headers}
    setup_testing_defaults(environ)
    said: list[tuple[str, dict[str, str]]] = []
    app = dashboard_app(db, token=token, read_only=read_only)
    body = app(environ, lambda status, heads, _info=None: said.append((status, dict(heads))))
    b"".join(body)
    return said[0]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("user", ["", "me", "ü"])
def test_the_token_opens_the_dashboard_for_any_host_and_user(db: Database, user: str) -> None:
    headers = {"HTTP_HOST": "box.example:8080", "HTTP_AUTHORIZATION": basic(user, TOKEN)}
    assert ask(db, "/api/studies", token=TOKEN, **headers)[0] == "200 OK"


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Basic",
        "Basic !!!",
        "Basic bm9jb2xvbg==",
        f"Bearer {TOKEN}",
        basic("me", TOKEN + "x"),
        basic("me", TOKEN[:-1]),
        basic(TOKEN, ""),
        basic("me", "ünicode"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/dashboard", "/api/studies", "/static/x", "/csv/1"])
def test_without_the_token_nothing_is_answered(db: Database, header: str, path: str) -> None:
    status, headers = ask(db, path, token=TOKEN, HTTP_AUTHORIZATION=header)
    assert status == "401 Unauthorized"
    assert headers["WWW-Authenticate"].startswith("Basic ")


def test_a_page_of_elsewhere_cannot_use_what_the_browser_remembers(db: Database) -> None:
    headers = {"HTTP_HOST": "box.example", "HTTP_AUTHORIZATION": basic("", TOKEN)}
    evil = {**headers, "HTTP_ORIGIN": "https://evil.example"}
    assert ask(db, "/api/studies/1", "DELETE", token=TOKEN, **evil)[0] == "403 Forbidden"
    own = {**headers, "HTTP_ORIGIN": "http://box.example"}
    assert ask(db, "/api/studies", token=TOKEN, **own)[0] == "200 OK"


def test_a_short_token_is_refused(db: Database) -> None:
    with pytest.raises(UserError, match=r"at least 12 characters \(got 5\)"):
        dashboard_app(db, token="12345")


def test_the_addresses_that_only_read_are_those_that_were_looked_at(db: Database) -> None:
    # What GET does was read in the source of 0.21: a new address wants to be looked at, too.
    routes = create_app(open_optuna_storage(db)).routes
    reading = {route.rule for route in routes if route.method == "GET"}
    assert reading == {
        "/",
        "/dashboard<:re:(/.*)?>",
        "/api/meta",
        "/api/studies",
        "/api/studies/<study_id:int>",
        "/api/studies/<study_id:int>/param_importances",
        "/api/studies/<study_id:int>/plot/<plot_type>",
        "/csv/<study_id:int>",
        "/favicon.ico",
        "/static/<filename:path>",
        "/incompatible-rdb-schema",
        "/artifacts/<study_id:int>/<artifact_id:re:[0-9a-fA-F-]+>",
        "/artifacts/<study_id:int>/<trial_id:int>/<artifact_id:re:[0-9a-fA-F-]+>",
    }


def test_read_only_refuses_every_request_that_changes(db: Database) -> None:
    routes = create_app(open_optuna_storage(db)).routes
    changing = {(r.method, r.rule) for r in routes if r.method not in READING}
    assert len(changing) > 10
    for method, rule in changing | {("OPTIONS", "/"), ("PATCH", "/api/studies")}:
        assert ask(db, rule, method, read_only=True)[0] == "403 Forbidden"
    assert ask(db, "/api/studies", read_only=True)[0] == "200 OK"
    assert ask(db, "/dashboard", "HEAD", read_only=True)[0] == "200 OK"
