from __future__ import annotations

import sqlite3
import threading
from typing import Any

import pymysql
import pytest
from psycopg import errors as pg
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from sft_tune.errors import StorageError
from sft_tune.store import retry
from sft_tune.store.database import Database
from sft_tune.store.retry import is_transient, retrying


def wrapped(driver_error: Exception, lost: bool = False) -> DBAPIError:
    return OperationalError("UPDATE t", {}, driver_error, connection_invalidated=lost)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (wrapped(sqlite3.OperationalError("database is locked")), True),
        (wrapped(sqlite3.OperationalError("database table is locked: trials")), True),
        (wrapped(sqlite3.OperationalError("no such table: trials")), False),
        (wrapped(sqlite3.OperationalError("database or disk is full")), False),
        (wrapped(pg.SerializationFailure("could not serialize")), True),
        (wrapped(pg.DeadlockDetected("deadlock detected")), True),
        (wrapped(pg.AdminShutdown("terminating connection")), True),
        (wrapped(pg.CannotConnectNow("the database system is starting up")), True),
        (wrapped(pg.OperationalError("connection failed: Connection refused")), True),
        # Of a connection that cannot be made psycopg gives no SQLSTATE.
        *(
            (
                wrapped(
                    pg.OperationalError(f'connection to "db.example", port 5432 failed: {said}')
                ),
                passes,
            )
            for said, passes in (
                ("FATAL:  the database system is shutting down", True),
                ("FATAL:  the database system is starting up", True),
                ("FATAL:  sorry, too many clients already", True),
                ("No route to host", True),
                ('FATAL:  database "tuning" does not exist', False),
                ('FATAL:  password authentication failed for user "me"', False),
            )
        ),
        (wrapped(pg.ConnectionTimeout("connection timeout expired")), True),
        (wrapped(pg.UndefinedTable("relation does not exist")), False),
        (wrapped(pg.InvalidPassword("password authentication failed")), False),
        (wrapped(pymysql.err.OperationalError(1213, "Deadlock found")), True),
        (wrapped(pymysql.err.OperationalError(1205, "Lock wait timeout exceeded")), True),
        (wrapped(pymysql.err.OperationalError(2003, "Can't connect")), True),
        (wrapped(pymysql.err.OperationalError(1045, "Access denied")), False),
        (wrapped(RuntimeError("anything"), lost=True), True),
        (ValueError("database is locked"), False),
    ],
)
def test_errors_that_pass_are_told_from_those_that_stay(error: Exception, passes: bool) -> None:
    assert is_transient(error) is passes


def failing(times: int, error: Exception) -> Any:
    calls = iter([error] * times)

    def operation() -> str:
        failure = next(calls, None)
        if failure is not None:
            raise failure
        return "done"

    return operation


def test_a_passing_error_is_waited_out_with_growing_delays() -> None:
    waits: list[float] = []
    busy = wrapped(sqlite3.OperationalError("database is locked"))
    assert retrying(failing(6, busy), wait=waits.append) == "done"
    assert len(waits) == 6
    assert waits[5] > waits[0] * 4
    assert all(0 < seconds <= 5 for seconds in waits)


def test_a_passing_error_that_does_not_pass_is_raised_after_a_bounded_number_of_tries() -> None:
    waits: list[float] = []
    busy = wrapped(sqlite3.OperationalError("database is locked"))
    with pytest.raises(OperationalError):
        retrying(failing(100, busy), wait=waits.append, attempts=4)
    assert len(waits) == 3


def test_another_error_is_raised_at_once() -> None:
    waits: list[float] = []
    wrong = IntegrityError("INSERT", {}, sqlite3.IntegrityError("UNIQUE constraint failed"))
    with pytest.raises(IntegrityError):
        retrying(failing(1, wrong), wait=waits.append)
    assert waits == []


def test_a_write_is_done_again_after_a_deadlock(db: Database) -> None:
    """Two transactions lock two rows in opposite order; SQLite lets one in at a time."""
    with db.transaction() as connection:
        connection.execute(text("CREATE TABLE sft_pair (id INTEGER PRIMARY KEY, n INTEGER)"))
        connection.execute(text("INSERT INTO sft_pair VALUES (1, 0), (2, 0)"))
    meeting = threading.Barrier(2)
    tries: list[int] = []

    def add(first: int, second: int) -> None:
        met = False

        def operation(connection: Any) -> None:
            nonlocal met
            tries.append(first)
            change = text("UPDATE sft_pair SET n = n + 1 WHERE id = :id")
            connection.execute(change, {"id": first})
            if not met and db.backend != "sqlite":
                met = True
                meeting.wait(timeout=20)
            connection.execute(change, {"id": second})

        db.write(operation)

    threads = [threading.Thread(target=add, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    try:
        with db.reading() as connection:
            assert connection.execute(text("SELECT n FROM sft_pair")).scalars().all() == [2, 2]
        assert len(tries) == (2 if db.backend == "sqlite" else 3)
    finally:
        with db.transaction() as connection:
            connection.execute(text("DROP TABLE sft_pair"))


def test_a_write_that_never_succeeds_becomes_a_storage_error(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_FIRST_DELAY", 0.0)
    busy = wrapped(sqlite3.OperationalError("database is locked"))

    def operation(connection: Any) -> None:
        raise busy

    with pytest.raises(StorageError, match="cannot write to .*database is locked"):
        db.write(operation, attempts=3)
