"""`sft-tune dashboard`: Optuna Dashboard in the browser."""

from __future__ import annotations

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
        str, typer.Option(help="127.0.0.1 or localhost: the dashboard has no authentication.")
    ] = "127.0.0.1",
) -> None:
    """Serve Optuna Dashboard, until Ctrl-C.

    Example: sft-tune dashboard --port 0
    """
    from sft_tune.store.urls import redact
    from sft_tune.view.dashboard import serve_dashboard

    with open_database(storage, create=True) as db:

        def ready(address: str) -> None:
            print(f"Optuna Dashboard of {redact(db.url)} at {address} (Ctrl-C ends it)", flush=True)

        serve_dashboard(db, host=host, port=port, ready=ready)
