"""Optuna Dashboard over a study database, served to this machine alone."""

from __future__ import annotations

import errno
import socketserver
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from sft_tune.errors import UserError
from sft_tune.store.database import Database
from sft_tune.store.studies import open_optuna_storage

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LOCAL = ("127.0.0.1", "localhost")


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    # A browser holds several connections open at once; a hanging one must not hold up the end.
    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base's name)
        """Say nothing of a request; errors of the application still reach standard error."""


def dashboard_app(db: Database) -> WSGIApplication:
    """Return Optuna Dashboard over ``db`` as a WSGI application that answers local pages only.

    The dashboard has no authentication, and can delete studies. Listening on the loopback address
    keeps other machines out, but not a web page in this machine's browser, whose requests name
    another host or origin; those are refused.
    """
    from optuna_dashboard import wsgi

    inner = wsgi(open_optuna_storage(db))

    def guarded(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        origin = environ.get("HTTP_ORIGIN")
        addresses = [f"//{environ.get('HTTP_HOST', '')}", *([origin] if origin else [])]
        if all(urlsplit(address).hostname in LOCAL for address in addresses):
            answer: Iterable[bytes] = inner(environ, start)
            return answer
        start("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"sft-tune dashboard answers pages of this machine only\n"]

    return guarded


def serve_dashboard(
    db: Database, *, host: str = "127.0.0.1", port: int = 8080, ready: Callable[[str], None]
) -> None:
    """Serve Optuna Dashboard over ``db`` until KeyboardInterrupt.

    Args:
        db: the database, its tables made.
        host: one of `LOCAL`.
        port: where to listen; 0: any free port.
        ready: told the address once it listens.

    Raises:
        UserError: for an address of another machine, or a port that is in use.
    """
    if host not in LOCAL:
        raise UserError(
            f"--host must be 127.0.0.1 or localhost (got {host}): the dashboard has no "
            "authentication, and whoever reaches it can delete studies; from elsewhere use "
            f"`ssh -L {port}:127.0.0.1:{port} THIS-MACHINE`"
        )
    app = dashboard_app(db)
    try:
        server = make_server(host, port, app, server_class=_Server, handler_class=_QuietHandler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise UserError(
            f"--port: cannot listen on {host}:{port} ({error.strerror}); "
            "give another, or 0 for any free one"
        ) from None
    with server:
        ready(f"http://{host}:{server.server_port}/")
        server.serve_forever()
