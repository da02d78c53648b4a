from __future__ import annotations

import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, make_url, text

from sft_tune.errors import StorageError
from sft_tune.store import database as database_module
from sft_tune.store.database import Database
from sft_tune.store.migrations import REVISIONS
from sft_tune.store.optuna_storage import ensure_optuna_study, open_optuna_storage
from tests.databases import server_url

OPEN = """
import sys
from sft_tune.store.database import Database
from sft_tune.store.migrations import REVISIONS
from sft_tune.store.migrations import REVISIONS
sys.stdin.readline()
database = Database.open(sys.argv[1], create=True)
print("open")
database.dispose()
"""


def test_a_database_is_made_once_and_opened_after(empty_url: str, backend: str) -> None:
    database = Database.open(empty_url, create=True)
    try:
        with database.reading() as connection:
            assert connection.execute(text("SELECT COUNT(*) FROM sft_results")).scalar() == 0
            assert connection.execute(text("SELECT COUNT(*) FROM trials")).scalar() == 0
        assert database.backend == {"mariadb": "mysql"}.get(backend, backend)
    finally:
        database.dispose()
    for create in (True, False):
        Database.open(empty_url, create=create).dispose()


def test_processes_that_make_one_database_at_once_all_succeed(empty_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", OPEN, empty_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        said, complained = process.communicate(timeout=120)
        assert (said, complained) == ("open\n", "")
    Database.open(empty_url, create=False).dispose()


def change(url: str, *statements: str) -> None:
    database = Database.open(url, create=False)
    try:
        with database.transaction() as connection:
            for statement in statements:
                connection.execute(text(statement))
    finally:
        database.dispose()


@pytest.fixture
def versioned(database_url: str) -> Iterator[Callable[[str, str], None]]:
    """A function that sets the version in a table; it is put back afterwards."""
    database = Database.open(database_url, create=False)
    restore: dict[str, str] = {}

    def set_version(table: str, version: str) -> None:
        with database.transaction() as connection:
            found = connection.execute(text(f"SELECT version_num FROM {table}")).scalar()
            restore.setdefault(table, str(found))
            connection.execute(text(f"UPDATE {table} SET version_num = :v"), {"v": version})

    yield set_version
    for table, version in restore.items():
        set_version(table, version)
    database.dispose()


def test_making_the_tables_goes_on_where_a_killed_process_left_off(database_url: str) -> None:
    change(
        database_url,
        "DROP VIEW sft_results",
        "DROP TABLE sft_finalists",
        "DROP TABLE sft_alembic_version",
    )
    database = Database.open(database_url, create=True)
    try:
        with database.reading() as connection:
            for table in ("sft_results", "sft_finalists"):
                assert connection.execute(text(f"SELECT COUNT(*) FROM {table}")).scalar() == 0
    finally:
        database.dispose()


def test_a_database_of_a_newer_version_is_refused(
    database_url: str, versioned: Callable[[str, str], None]
) -> None:
    versioned("sft_alembic_version", "9999")
    for create in (True, False):
        with pytest.raises(StorageError, match="written by a newer sft_tune; upgrade: pip"):
            Database.open(database_url, create=create).dispose()


def test_a_database_of_an_older_version_is_upgraded_by_who_may_write(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft_tune.store.schema.REVISIONS", (*REVISIONS, "next"))
    # Indexes alone are new: to look at it, nobody need upgrade it.
    Database.open(database_url, create=False).dispose()
    monkeypatch.setattr("sft_tune.store.schema.READABLE", "next")
    with pytest.raises(StorageError, match="older sft_tune; any `sft-tune start` upgrades"):
        Database.open(database_url, create=False).dispose()
    upgraded: list[bool] = []
    monkeypatch.setattr("sft_tune.store.schema.upgrade", lambda connection: upgraded.append(True))
    Database.open(database_url, create=True).dispose()
    assert upgraded == [True]


def test_optuna_tables_of_another_version_are_refused(
    database_url: str, versioned: Callable[[str, str], None]
) -> None:
    versioned("alembic_version", "v1.3.0.a")
    database = Database.open(database_url, create=True)
    try:
        with pytest.raises(StorageError, match="optuna storage upgrade"):
            open_optuna_storage(database)
    finally:
        database.dispose()


def test_a_database_without_our_tables_is_not_made_by_a_reader(empty_url: str) -> None:
    with pytest.raises(
        StorageError, match="no stud(y database at|ies of sft_tune).*sft-tune start"
    ):
        Database.open(empty_url, create=False).dispose()
    if empty_url.startswith("sqlite"):
        assert not Path(make_url(empty_url).database or "").exists()


def test_a_transaction_that_raises_leaves_nothing(db: Database) -> None:
    count = text("SELECT COUNT(*) FROM studies")
    with pytest.raises(ZeroDivisionError), db.transaction() as connection:
        connection.execute(text("INSERT INTO studies (study_name) VALUES ('x')"))
        assert connection.execute(count).scalar() == 1
        raise ZeroDivisionError
    with db.reading() as connection:
        assert connection.execute(count).scalar() == 0


def test_transactions_that_read_before_they_write_wait_for_one_another(db: Database) -> None:
    """At their first try: SQLite would refuse the write of one that began as a reader."""
    with db.transaction() as connection:
        connection.execute(text("INSERT INTO studies (study_name) VALUES ('0')"))

    def add(connection: Connection) -> None:
        connection.execute(text("SELECT COUNT(*) FROM studies")).scalar()
        number = "CAST(study_name AS DECIMAL) + 1"
        connection.execute(text(f"UPDATE studies SET study_name = CAST({number} AS CHAR(4))"))

    errors: list[StorageError] = []

    def add_often() -> None:
        try:
            for _ in range(10):
                db.write(add, attempts=1)
        except StorageError as error:
            errors.append(error)

    threads = [threading.Thread(target=add_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert errors == []
    with db.reading() as connection:
        assert int(connection.execute(text("SELECT study_name FROM studies")).scalar_one()) == 40


@pytest.mark.parametrize("folder", ["plain", "br{ace}s 50%"])
def test_sqlite_is_set_up_for_many_processes(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    database = Database.open(str(tmp_path / folder / "s.db"), create=True)
    storage = open_optuna_storage(database)
    try:
        for engine in (database.engine, storage.engine):
            with engine.connect() as connection:
                assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
                assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000
        with database.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    finally:
        database.dispose()
    assert (tmp_path / folder / "s.db").is_file()


def test_an_optuna_study_is_made_once(db: Database) -> None:
    storage = open_optuna_storage(db)
    first = ensure_optuna_study(storage, "x", "maximize", "accuracy")
    assert ensure_optuna_study(storage, "x", "maximize", "accuracy") == first
    assert [d.name for d in storage.get_study_directions(first)] == ["MAXIMIZE"]
    assert storage.get_study_system_attrs(first) == {"study:metric_names": ["accuracy"]}


def message_and_traceback(url: str, create: bool = True) -> tuple[str, str]:
    with pytest.raises(StorageError) as caught:
        Database.open(url, create=create).dispose()
    return str(caught.value), "".join(traceback.format_exception(caught.value))


@pytest.mark.services
@pytest.mark.parametrize("server", ["postgresql", "mariadb"])
@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"database": "sft_no_such"}, "create the database first: CREATE DATABASE sft_no_such"),
        ({"port": 1}, "no server answers there"),
        ({"host": "no-such-host.invalid"}, "host's name is unknown|no server answers"),
        ({"username": "sft_nobody"}, "does not know this user|refuses the user or the password"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_with_a_remedy_and_no_password(
    server: str, change: dict[str, object], remedy: str
) -> None:
    url = server_url(server).set(**change)  # type: ignore[arg-type]
    if server == "postgresql" or "username" in change:  # MariaDB checks the password first.
        url = url.set(password="hunter%2@/:?x")
    message, full = message_and_traceback(url.render_as_string(hide_password=False))
    assert re.search(remedy, message), message
    assert len(message.splitlines()) <= 2
    for secret in ("hunter", "hunter%252%40%2F%3A"):
        assert secret not in full


@pytest.mark.services
def test_a_wrong_password_is_not_shown() -> None:
    url = server_url("mariadb").set(username="root", password="hunter2")
    message, full = message_and_traceback(url.render_as_string(hide_password=False))
    assert "refuses the user or the password" in message
    assert "root:***@" in message
    assert "hunter2" not in full


@pytest.mark.services
def test_an_open_database_does_not_show_its_password() -> None:
    # PostgreSQL here trusts everyone, so any password opens it.
    url = server_url("postgresql").set(password="hunter2")
    engine = database_module._make_engine(url.render_as_string(hide_password=False))
    database = Database(url.render_as_string(hide_password=False), engine)
    try:
        assert "hunter2" not in repr(database) + str(database) + repr(engine)
        assert "***" in repr(database)
    finally:
        database.dispose()


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("postgresql+asyncpg://u:hunter2@h/db", "pip install 'sft_tune[postgresql]'"),
        ("postgresql+nonsense://u:hunter2@h/db", "pip install 'sft_tune[postgresql]'"),
        ("mysql+mysqldb://u:hunter2@h/db", "pip install 'sft_tune[mysql]'"),
    ],
)
def test_a_missing_driver_says_what_to_install(url: str, remedy: str) -> None:
    message, full = message_and_traceback(url)
    assert remedy in message
    assert "hunter2" not in full


def test_a_sqlite_file_that_cannot_be_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database " * 100)
    (tmp_path / "folder.db").mkdir()
    for path, remedy in (
        (tmp_path / "missing" / "x.db", "does not exist; make it"),
        (tmp_path / "text.db", "is no SQLite database"),
        (tmp_path / "folder.db", "is not a file"),
        (Path("/proc/x.db"), "check its permissions|permissions"),
    ):
        message, _ = message_and_traceback(str(path))
        assert any(part in message for part in remedy.split("|")), message
        assert str(path.parent) in message
