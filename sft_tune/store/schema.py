"""The tables' versions: made, upgraded or refused when a database is opened."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import make_url

from sft_tune.errors import StorageError
from sft_tune.store.migrations import READABLE, REVISIONS, VERSION_TABLE
from sft_tune.store.urls import redact

if TYPE_CHECKING:
    from sft_tune.store.database import Database

State = Literal["missing", "older", "readable", "current", "newer"]

LOCK_SECONDS = 60
_LOCK_NUMBER = 0x5F7_7E5E
"""Any number that no other program is likely to lock in the same PostgreSQL database."""

# Alembic hands its context over through a module: one migration at a time in a process.
_one_migration = threading.Lock()


def state(connection: Connection) -> State:
    """Tell how our tables in the database compare with what this code expects."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return "missing"
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    if found is None:
        return "missing"
    if found == REVISIONS[-1]:
        return "current"
    if found not in REVISIONS:
        return "newer"
    return "older" if REVISIONS.index(found) < REVISIONS.index(READABLE) else "readable"


def ensure(database: Database, *, create: bool) -> None:
    """Check the tables of ``database``; with ``create`` make or upgrade them.

    Raises:
        StorageError: tables are missing or older and ``create`` is false; they are newer; or
            Optuna's tables are of a version that the installed Optuna cannot use.
    """
    with database.reading() as connection:
        found = state(connection)
    if found == "current" or (found == "readable" and not create):
        return
    place = redact(database.url)
    if found == "newer":
        raise StorageError(
            f"{place} was written by a newer sft_tune; upgrade: pip install -U sft_tune"
        )
    if not create:
        if found == "missing":
            raise StorageError(f"{place} holds no studies of sft_tune; `sft-tune start` adds one")
        raise StorageError(
            f"{place} was written by an older sft_tune; any `sft-tune start` upgrades it"
        )
    with creation_lock(database):
        with database.reading() as connection:
            if state(connection) == "current":
                return  # Another process was faster.
        _create(database)


def _create(database: Database) -> None:
    # Optuna's tables first: who finds ours complete may rely on both.
    from sft_tune.store.optuna_storage import create_optuna_tables

    if database.backend == "sqlite":
        _use_write_ahead_log(database)
    create_optuna_tables(database)
    with database.transaction() as connection:
        upgrade(connection)


def upgrade(connection: Connection) -> None:
    """Bring our tables to the newest version with Alembic, inside the caller's transaction."""
    from alembic import command
    from alembic.config import Config

    folder = Path(__file__).parent / "migrations"
    config = Config()
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    with _one_migration:
        command.upgrade(config, "head")


def _use_write_ahead_log(database: Database) -> None:
    """Let readers not wait for the writer, nor it for them; the setting stays in the file."""
    connection = database.engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()


@contextmanager
def creation_lock(database: Database) -> Iterator[None]:
    """Let one process at a time make tables in ``database``.

    Raises:
        StorageError: when another holds the lock for over a minute (SQLite, MySQL).
    """
    if database.backend == "sqlite":
        with _file_lock(database):
            yield
        return
    # Both kinds of lock belong to the session: the server frees them when its process dies.
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if database.backend == "postgresql":
            take, give = "pg_advisory_lock(:name)", "pg_advisory_unlock(:name)"
            name: int | str = _LOCK_NUMBER
        else:
            # Names are the whole server's, and at most 64 characters.
            take, give = f"GET_LOCK(:name, {LOCK_SECONDS})", "RELEASE_LOCK(:name)"
            place = make_url(database.url).database or ""
            name = "sft_tune:" + sha256(place.encode()).hexdigest()[:32]
        answer = connection.execute(text(f"SELECT {take}"), {"name": name}).scalar()
        if answer == 0:
            raise _busy(database)
        try:
            yield
        finally:
            connection.execute(text(f"SELECT {give}"), {"name": name})


@contextmanager
def _file_lock(database: Database) -> Iterator[None]:
    from filelock import FileLock, Timeout

    path = f"{make_url(database.url).database}.lock"
    lock = FileLock(path, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise _busy(database) from None
    except OSError as error:
        raise StorageError(
            f"cannot write in {Path(path).parent}: {error.strerror}; "
            "check its permissions, or choose another place with --storage"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _busy(database: Database) -> StorageError:
    return StorageError(
        f"another process has been making the tables of {redact(database.url)} for "
        f"{LOCK_SECONDS} seconds; is one hanging?"
    )
