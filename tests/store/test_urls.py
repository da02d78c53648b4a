from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, make_url

from sft_tune.errors import StorageError
from sft_tune.store.urls import redact, resolve_url, scrub

SECRET = "s3cr:t/#?%{x}"


def test_the_argument_goes_before_the_environment_before_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert resolve_url() == f"sqlite:///{tmp_path}/sft_tune.db"
    monkeypatch.setenv("SFT_TUNE_STORAGE", "sqlite:///other.db")
    assert resolve_url() == f"sqlite:///{tmp_path}/other.db"
    assert resolve_url("third.db") == f"sqlite:///{tmp_path}/third.db"


@pytest.mark.parametrize(
    ("given_url", "complete"),
    [
        ("postgresql://u@h/db", "postgresql+psycopg://u@h/db"),
        ("postgres://u:p@h:5433/db", "postgresql+psycopg://u:p@h:5433/db"),
        ("postgresql+psycopg2://h/db", "postgresql+psycopg2://h/db"),
        ("mysql://u@h/db", "mysql+pymysql://u@h/db?charset=utf8mb4"),
        ("mariadb://u@h/db", "mysql+pymysql://u@h/db?charset=utf8mb4"),
        ("MariaDB+PyMySQL://u@h/db", "mysql+pymysql://u@h/db?charset=utf8mb4"),
        ("mysql+mysqldb://h/db?charset=utf8", "mysql+mysqldb://h/db?charset=utf8"),
        ("sqlite:////abs/a.db", "sqlite:////abs/a.db"),
        ("/abs/a.sqlite3", "sqlite:////abs/a.sqlite3"),
    ],
)
def test_short_forms_become_complete_urls(given_url: str, complete: str) -> None:
    assert resolve_url(given_url) == complete
    assert resolve_url(complete) == complete


@pytest.mark.parametrize("name", ["with space.db", "a{b}.db", "50%.db", "a?b.db", "ü#1.db"])
def test_any_file_name_survives_the_url(name: str, tmp_path: Path) -> None:
    assert make_url(resolve_url(name)).database == str(tmp_path / name)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oracle://u:secret@h/db", "unknown database 'oracle'"),
        ("somewhere", "neither a .db file nor a URL"),
        ("postgresql://u:secret@h", "names no database"),
        ("postgresql://u:se@cret@h/db", "'@' in a user name or password must be written %40"),
        ("postgresql://u:secret", "cannot be read"),
        ("sqlite://", "needs a database file"),
        ("sqlite:///:memory:", "needs a database file"),
        ("sqlite:///file:x?mode=memory&uri=true", "needs a database file"),
        ("user:secret@host/db", "neither a .db file nor a URL"),
        ("postgresql//me:secret@host/db", "write postgresql:// at its beginning"),
    ],
)
def test_what_is_no_url_of_a_database_is_refused_without_its_password(
    url: str, message: str
) -> None:
    with pytest.raises(StorageError) as caught:
        resolve_url(url)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "cret" not in str(caught.value)
    assert (
        "sqlite:///FILE.db" in str(caught.value)
        or "%40" in str(caught.value)
        or "add" in str(caught.value)
    )


@given(
    user=st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=8),
    password=st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=12),
    host=st.sampled_from(["h", "db.example.org", "[::1]"]),
)
def test_no_password_is_left_in_a_redacted_url(user: str, password: str, host: str) -> None:
    secret = f"<{password}>"
    url = URL.create("postgresql", user, secret, "h", 5432, "db")
    written = url.render_as_string(hide_password=False).replace("@h:", f"@{host}:")
    shown = redact(written)
    assert "***" in shown
    assert secret not in shown
    assert url.render_as_string(hide_password=False).split("@")[0].split(":", 2)[2] not in shown
    assert shown.endswith(f"@{host}:5432/db")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://h:5432/db", "postgresql://h:5432/db"),
        ("postgresql://u:p@h/db?sslmode=require", "postgresql://u:***@h/db?sslmode=require"),
        ("postgresql://h/db?user=u&password=p&x=1", "postgresql://h/db?user=u&password=***&x=1"),
        ("mysql://h/db?ssl_password=p", "mysql://h/db?ssl_password=***"),
        ("postgresql://u:a@b:c@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:secret/word", "postgresql://u:***/word"),
    ],
)
def test_a_redacted_url_says_all_but_the_password(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_a_driver_s_words_lose_every_form_of_the_password() -> None:
    url = URL.create("postgresql+psycopg", "u", SECRET, "h", None, "db", {"password": "wh at"})
    text = url.render_as_string(hide_password=False)
    said = f"failed for {SECRET!r}: {SECRET} in {text} and 'wh at'"
    clean = scrub(said, text)
    assert SECRET not in clean
    assert "s3cr" not in clean
    assert "wh at" not in clean
