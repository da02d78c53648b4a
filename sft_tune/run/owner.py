"""Who holds a lease: one process of one machine, told apart from a later one of the same number."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Sequence

import psutil

from sft_tune.store import runners
from sft_tune.store.database import Database

LEASE_SECONDS = 60.0


def owner_name() -> str:
    """Return the name under which this process claims trials: ``host:pid:start time``."""
    process = psutil.Process(os.getpid())
    return f"{socket.gethostname()}:{process.pid}:{process.create_time():.2f}"


def is_dead(owner: str) -> bool:
    """Tell whether ``owner`` is a process of this machine that no longer runs.

    Of other machines nothing is known: their leases have to expire.
    """
    host, pid, started = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(pid))
        # A zombie holds its number until its parent reads its status, and does nothing.
        return (
            process.status() == psutil.STATUS_ZOMBIE
            or abs(process.create_time() - float(started)) > 1
        )
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def announce(db: Database, owner: str, *, engine: str, slots: Sequence[str], now: float) -> None:
    """Say for `status` that the runner ``owner`` lives, and what its slots are called."""
    host = platform.node()
    runners.announce(
        db, owner, host=host, engine=engine, slots=slots, now=now, seconds=LEASE_SECONDS
    )
