"""A database of its own for each test, on SQLite, PostgreSQL and MariaDB, through fixtures.

A conftest takes them by ``from tests.databases import backend, database_url, db, empty_url,
prepared``.
Servers are looked for at the usual local address, or where ``SFT_TUNE_TEST_POSTGRESQL`` and
``SFT_TUNE_TEST_MARIADB`` (URLs of a database in which tests may make others) say.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL, Engine, create_engine, inspect, make_url
from sqlalchemy.exc import OperationalError

from sft_tune.store.database import Database

SERVERS = {
    "postgresql": ("SFT_TUNE_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1/test"),
    "mariadb": ("SFT_TUNE_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1/test?charset=utf8mb4"),
}
BACKENDS = [
    "sqlite",
    pytest.param("postgresql", marks=pytest.mark.services),
    pytest.param("mariadb", marks=pytest.mark.services),
]
VERSIONS = {"alembic_version", "sft_alembic_version", "version_info"}


@functools.cache
def server_url(backend: str) -> URL:
    """Return where the server is; skip the test when none answers there."""
    variable, usual = SERVERS[backend]
    url = make_url(os.environ.get(variable) or usual)
    engine = create_engine(url, connect_args={"connect_timeout": 3})
    try:
        engine.connect().close()
    except OperationalError as error:
        pytest.skip(f"no {backend} server answers at {url} (or {variable}): {error.orig}")
    finally:
        engine.dispose()
    return url


@contextmanager
def _administrator(url: URL) -> Iterator[Engine]:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        yield engine
    finally:
        engine.dispose()


def run_on_server(url: URL, *statements: str) -> None:
    with _administrator(url) as engine, engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


@contextmanager
def new_database(backend: str, folder: Path) -> Iterator[str]:
    """Give the URL of an empty database that is gone afterwards."""
    name = f"sft_test_{uuid4().hex[:12]}"
    if backend == "sqlite":
        yield f"sqlite:///{folder / name}.db"
        return
    server = server_url(backend)
    if backend == "postgresql":
        # A schema: as good as a database of its own, and made in a tenth of the time.
        place = server.update_query_dict({"options": f"-csearch_path={name}"})
        made, dropped = f"CREATE SCHEMA {name}", f"DROP SCHEMA {name} CASCADE"
    else:
        place = server.set(database=name)
        made, dropped = f"CREATE DATABASE {name}", f"DROP DATABASE {name}"
    run_on_server(server, made)
    try:
        yield place.render_as_string(hide_password=False)
    finally:
        run_on_server(server, dropped)


@pytest.fixture(params=BACKENDS, scope="session")
def backend(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def prepared(backend: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database with all tables, made and opened once a session."""
    with new_database(backend, tmp_path_factory.mktemp(backend)) as url:
        database = Database.open(url, create=True)
        yield database
        database.dispose()


@pytest.fixture
def db(prepared: Database) -> Database:
    """An open database with all tables and no row in them."""
    with prepared.transaction() as connection:
        tables = set(inspect(connection).get_table_names()) - VERSIONS
        if prepared.backend == "mysql":
            connection.exec_driver_sql("SET FOREIGN_KEY_CHECKS = 0")
        elif prepared.backend == "sqlite":
            connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        if prepared.backend == "postgresql":
            connection.exec_driver_sql(f"TRUNCATE {', '.join(sorted(tables))}")
        else:
            for table in sorted(tables):
                connection.exec_driver_sql(f"DELETE FROM {table}")
        if prepared.backend == "mysql":
            connection.exec_driver_sql("SET FOREIGN_KEY_CHECKS = 1")
    return prepared


@pytest.fixture
def database_url(db: Database) -> str:
    """URL of a database with all tables and no row in them."""
    return db.url


@pytest.fixture
def empty_url(backend: str, tmp_path: Path) -> Iterator[str]:
    """URL of a database with nothing in it."""
    with new_database(backend, tmp_path) as url:
        yield url
