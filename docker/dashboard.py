"""Optuna Dashboard in a container, on every address of the container: port 8080.

`sft-tune dashboard` listens on the loopback address alone, which in a container nothing outside
of it reaches. Here the host keeps others out: compose.yaml publishes the port on the host's
loopback address. Requests of other hosts' pages are refused as ever (`dashboard_app`).
"""

from __future__ import annotations

import sys
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sft_tune.cli.app import report
from sft_tune.errors import SftTuneError
from sft_tune.session import open_database
from sft_tune.store.urls import redact
from sft_tune.view.dashboard import dashboard_app

if TYPE_CHECKING:
    from sft_tune.store.database import Database

PORT = 8080


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of a request."""


def make_dashboard(db: Database, port: int = PORT) -> WSGIServer:
    """Return a server of Optuna Dashboard over ``db`` that listens on every address."""
    return make_server(
        "0.0.0.0", port, dashboard_app(db), server_class=_Server, handler_class=_QuietHandler
    )


def main() -> None:
    """Serve the database that SFT_TUNE_STORAGE names, until a signal ends the process."""
    with open_database(None, create=True) as db, make_dashboard(db) as server:
        print(f"Optuna Dashboard of {redact(db.url)} on port {PORT}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except SftTuneError as error:
        sys.exit(report(error))
