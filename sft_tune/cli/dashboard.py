"""`sft-tune dashboard`: Optuna Dashboard in the browser."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from sft_tune.cli.options import Storage
from sft_tune.session import open_database


def dashboard(
    storage: Storage = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = 8080,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; one that other machines reach needs a token."),
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            envvar="SFT_TUNE_DASHBOARD_TOKEN",
            show_default=False,
            help="Password that browsers must give, with any user name. Default: none on this "
            "machine's own address, else one is made and printed.",
        ),
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Refuse every request that changes something.")
    ] = False,
) -> None:
    """Serve Optuna Dashboard, until Ctrl-C.

    Example: sft-tune dashboard --host 0.0.0.0 --read-only
    """
    from sft_tune.store.urls import redact
    from sft_tune.view.dashboard import serve_dashboard
    from sft_tune.view.dashboard_guard import LOCAL

    made = None
    if token is None and host not in LOCAL:
        token = made = secrets.token_urlsafe(24)
    with open_database(storage, create=True) as db:

        def ready(address: str) -> None:
            print(f"Optuna Dashboard of {redact(db.url)} at {address} (Ctrl-C ends it)")
            if made is not None:
                print(f"password (any user name): {made}")
            if token is not None:
                print("the password travels in clear: put TLS in front, or use a private network")
            print(end="", flush=True)

        serve_dashboard(db, host=host, port=port, token=token, read_only=read_only, ready=ready)
