"""A PostgreSQL server of a test's own, to be stopped and started."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if os.name == "posix" else []


class OwnServer:
    """A server under a folder of its own, on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        found = shutil.which("pg_ctl")
        binaries = Path(found).resolve().parent if found else (PLACES[-1] if PLACES else None)
        if binaries is None:
            pytest.skip("needs PostgreSQL's server programs (initdb, pg_ctl), which are absent")
        self._binaries = binaries
        self._folder = folder
        # It refuses to run as root.
        self._as: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            self._as = ["runuser", "-u", "postgres", "--"]
            for place in (folder, *folder.parents):
                if place.stat().st_uid == 0 and place != Path("/"):
                    place.chmod(place.stat().st_mode | 0o711)
            os.chown(folder, user.pw_uid, user.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust")
        self.start()

    def _run(self, program: str, *args: str) -> None:
        subprocess.run(
            [*self._as, str(self._binaries / program), *args],
            check=True,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )

    def _control(self, *args: str) -> None:
        self._run("pg_ctl", "-D", str(self._folder / "data"), "-w", *args)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self._folder} -c fsync=off"
        self._control("-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """As a crash would: what was not committed is gone, connections break."""
        self._control("-m", "immediate", "stop")

    def new_database(self) -> str:
        name = f"chaos_{uuid4().hex}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def remove(self) -> None:
        self.stop()
