"""Optuna Dashboard over a study database: to this machine, or to whoever has the token."""

from __future__ import annotations

import errno
import socketserver
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sft_tune.errors import UserError
from sft_tune.store.database import Database
from sft_tune.store.studies import open_optuna_storage
from sft_tune.view.dashboard_files import TrialFiles
from sft_tune.view.dashboard_guard import LOCAL, SHORTEST_TOKEN, guarded
from sft_tune.view.dashboard_sync import in_step

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

UPLOADS = "sft_tune_uploads"
"""Folder, in the working directory, of what people upload to the dashboard's pages."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    # A browser holds several connections open at once; a hanging one must not hold up the end.
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base's name)
        """Say nothing of a request; errors of the application still reach standard error."""


def dashboard_app(
    db: Database, *, token: str | None = None, read_only: bool = False
) -> WSGIApplication:
    """Return Optuna Dashboard over ``db`` as a WSGI application behind its guards.

    Args:
        db: the database, its tables made.
        token: whoever gives it is answered; None: pages of this machine only.
        read_only: refuse every request that may change something.

    Raises:
        UserError: a token that is too short.
    """
    from optuna_dashboard import wsgi

    if token is not None and len(token) < SHORTEST_TOKEN:
        raise UserError(
            f"the token of the dashboard must have at least {SHORTEST_TOKEN} characters "
            f"(got {len(token)}); without one a good one is made"
        )
    files = TrialFiles(db, Path.cwd() / UPLOADS)
    return guarded(
        wsgi(open_optuna_storage(db), artifact_store=files), token=token, read_only=read_only
    )


def serve_dashboard(
    db: Database,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    read_only: bool = False,
    ready: Callable[[str], None],
) -> None:
    """Serve Optuna Dashboard over ``db`` until KeyboardInterrupt.

    Args:
        db: the database, its tables made.
        host: the address to listen on; any but those of `LOCAL` needs a token.
        port: where to listen; 0: any free port.
        token: what a browser must give as the password; None: nothing.
        read_only: refuse every request that may change something.
        ready: told the address once it listens.

    Raises:
        UserError: for an address of another machine without a token, an address that is none of
            this machine's, or a port that is in use.
    """
    if host not in LOCAL and token is None:
        raise UserError(
            f"--host must be 127.0.0.1 or localhost without a token (got {host}): the dashboard "
            "has no authentication of its own, and whoever reaches it can delete studies; give "
            f"--token, or use `ssh -L {port}:127.0.0.1:{port} THIS-MACHINE`"
        )
    app = dashboard_app(db, token=token, read_only=read_only)
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_QuietHandler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        raise UserError(
            f"--port: cannot listen on {host}:{port} ({error.strerror}); "
            "give another, or 0 for any free one"
        ) from None
    with server, in_step(db, clock=time.time, complain=_complain):
        ready(f"http://{host}:{server.server_port}/")
        server.serve_forever()


def _complain(text: str) -> None:
    print(f"dashboard: {text}", file=sys.stderr, flush=True)
