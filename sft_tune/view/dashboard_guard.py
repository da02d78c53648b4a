"""Who may ask the dashboard for what: this machine's pages, or whoever has the token."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

LOCAL = ("127.0.0.1", "localhost")
READING = ("GET", "HEAD")
"""Methods that change nothing: true of every such address of Optuna Dashboard 0.21."""

SHORTEST_TOKEN = 12


def guarded(inner: WSGIApplication, *, token: str | None, read_only: bool) -> WSGIApplication:
    """Return ``inner`` behind its guards.

    Without a token only requests to this machine's own address are answered: listening on the
    loopback address keeps other machines out, but not a web page in this machine's browser, whose
    requests name another host or origin. With one, a browser asks for it (HTTP basic
    authentication; any user name), and pages of other origins cannot use what it remembers.

    Args:
        inner: the dashboard.
        token: the password; None: none is needed.
        read_only: refuse every request that may change something.
    """

    def application(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        refusal = _refusal(environ, token, read_only)
        if refusal is None:
            return inner(environ, start)
        status, told = refusal
        headers = [("Content-Type", "text/plain; charset=utf-8")]
        if status.startswith("401"):
            headers.append(("WWW-Authenticate", 'Basic realm="sft_tune", charset="UTF-8"'))
        start(status, headers)
        return [f"{told}\n".encode()]

    return application


def _refusal(
    environ: WSGIEnvironment, token: str | None, read_only: bool
) -> tuple[str, str] | None:
    """Return status and words of the answer to a request that is refused; None: it may pass."""
    host = str(environ.get("HTTP_HOST", ""))
    origin = environ.get("HTTP_ORIGIN")
    if token is None:
        addresses = [f"//{host}", *([str(origin)] if origin else [])]
        if any(urlsplit(address).hostname not in LOCAL for address in addresses):
            return "403 Forbidden", "sft-tune dashboard answers pages of this machine only"
    else:
        if not _has_token(str(environ.get("HTTP_AUTHORIZATION", "")), token):
            return "401 Unauthorized", "the password is the token of `sft-tune dashboard`"
        if origin and urlsplit(str(origin)).netloc != host:
            return "403 Forbidden", "sft-tune dashboard answers its own pages only"
    if read_only and environ.get("REQUEST_METHOD", "GET") not in READING:
        return "403 Forbidden", "this dashboard is read-only (`sft-tune dashboard --read-only`)"
    return None


def _has_token(header: str, token: str) -> bool:
    kind, _, given = header.partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        _, _, password = base64.b64decode(given.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return False
    return secrets.compare_digest(password, token.encode())
