"""`sft-tune import`: a study that another program made with Optuna."""

from __future__ import annotations

from typing import Annotated

import typer

from sft_tune.cli.lookup import options_of
from sft_tune.cli.options import Storage
from sft_tune.session import open_database, quiet_optuna


def import_(
    study: Annotated[
        str,
        typer.Argument(metavar="STUDY", show_default=False, help="Its name in the other database."),
    ],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="URL",
            show_default=False,
            help="The other database: a .db file or a URL. It stays as it is.",
        ),
    ],
    as_name: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", show_default=False, help="Its name here."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="What its value is called. Default: what Optuna knows it by, else value.",
        ),
    ] = None,
    storage: Storage = None,
) -> None:
    """Copy a study of Optuna's from another database, to list, plot and report on it here.

    Example: sft-tune import my-study --from optuna.db --metric accuracy
    """
    from sft_tune.store.imports import import_study

    with open_database(storage, create=True) as db, quiet_optuna():
        told, count = import_study(db, study, source, as_name=as_name, metric=metric)
        name, options = as_name or study, options_of(db)
    print(f"{name}: {count} trials, {told}\nnext  sft-tune report {name}{options}")
