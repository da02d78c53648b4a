"""Errors that pass by themselves, and doing it again.

A busy SQLite file, a deadlock, a serialization failure, a server that restarts: the transaction
was rolled back and the same one may well succeed a moment later.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError

from sft_tune.errors import SftTuneError

T = TypeVar("T")

ATTEMPTS = 12
"""Attempts in all: with the delays below about 20 seconds, the time that a server restarts in."""

_FIRST_DELAY = 0.05
_LONGEST_DELAY = 5.0

# SQLSTATE: serialization failure, deadlock, lock not available; shut down by the administrator,
# crashed, starting up; too many connections. Class 08 is every kind of lost connection.
_POSTGRESQL = {"40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300"}
# Lock wait timeout, deadlock, record changed; too many connections; server shutting down, gone,
# lost, not there yet; connection killed.
_MYSQL = {1205, 1213, 1020, 1040, 1053, 2002, 2003, 2006, 2013, 2055, 1927}
# What psycopg says, with no SQLSTATE, when it cannot connect: libpq hands on only the words of a
# server that refuses, and where there is no server there is none to give a state.
_NO_CONNECTION = (
    "connection refused",
    "server closed the connection",
    "connection reset",
    "connection timeout",
    "timeout expired",
    "no route to host",
    "network is unreachable",
    "temporary failure in name resolution",
    "the database system is ",  # shutting down, starting up, in recovery mode
    "too many clients",
    "connection slots are reserved",
)
_SQLITE = ("database is locked", "database table is locked", "database schema is locked")


def is_transient(error: BaseException) -> bool:
    """Tell whether the same transaction may succeed when it is tried again.

    Optuna's storage wraps what the database said; the cause counts.
    """
    while not isinstance(error, DBAPIError):
        if error.__cause__ is None:
            return False
        error = error.__cause__
    if error.connection_invalidated:
        return True
    driver_error = error.orig
    state = getattr(driver_error, "sqlstate", None)
    if state is not None:
        return state in _POSTGRESQL or state.startswith("08")
    text = str(driver_error).lower()
    code = driver_error.args[0] if driver_error is not None and driver_error.args else None
    if isinstance(code, int):
        return code in _MYSQL
    return any(phrase in text for phrase in (*_NO_CONNECTION, *_SQLITE))


def retrying(
    operation: Callable[[], T],
    *,
    attempts: int = ATTEMPTS,
    wait: Callable[[float], object] | None = None,
) -> T:
    """Return what ``operation`` returns, after as many as ``attempts`` tries.

    Args:
        operation: one whole transaction; it must bear being done again after a try whose commit
            succeeded but whose answer was lost.
        attempts: tries in all, at least 1.
        wait: waits for the given seconds; a caller that may be told to stop passes the ``wait``
            of its event.

    Raises:
        Exception: what ``operation`` raised last, at once when it is not transient.
    """
    pause = wait or threading.Event().wait
    for attempt in range(1, attempts):
        try:
            return operation()
        except Exception as error:
            if isinstance(error, SftTuneError) or not is_transient(error):
                raise
        # Jitter: those who collided once must not meet again.
        pause(min(_FIRST_DELAY * 2 ** (attempt - 1), _LONGEST_DELAY) * random.uniform(0.5, 1.0))
    return operation()
