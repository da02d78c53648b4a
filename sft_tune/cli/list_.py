"""`sft-tune list`: every study of a database."""

from __future__ import annotations

import time

from sft_tune.cli.options import AsJson, Storage
from sft_tune.cli.output import console, print_json
from sft_tune.session import open_database


def list_(storage: Storage = None, as_json: AsJson = False) -> None:
    """List the studies of the database.

    Example: sft-tune list --storage results.db
    """
    from sft_tune.cli.lookup import living
    from sft_tune.run.owner import is_dead
    from sft_tune.store.reads import list_studies
    from sft_tune.store.runners import live_runners
    from sft_tune.store.urls import redact

    with open_database(storage) as db:
        rows = [living(row) for row in list_studies(db)]
        served = any(not is_dead(runner.owner) for runner in live_runners(db, time.time()))
        where = redact(db.url)
    if as_json:
        from sft_tune.view.records import study_json

        print_json([study_json(row, time.time()) for row in rows])
        return
    from sft_tune.view.tables import studies_table

    if rows:
        out = console()
        out.print(studies_table(rows, out, time.time(), served=served))
    else:
        print(f"no studies yet in {where}; `sft-tune start` adds one")
