"""`sft-tune report`: a study as one page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sft_tune.cli.options import Storage, StudyName
from sft_tune.cli.output import check_folder_of
from sft_tune.session import open_database


def report(
    study: StudyName,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            show_default=False,
            help="Where to write it. Default: STUDY-report.html.",
        ),
    ] = None,
    storage: Storage = None,
) -> None:
    """Write a report on a study: one page with every plot in it, that needs no network.

    Example: sft-tune report my-study -o report.html
    """
    from importlib.metadata import version

    from sft_tune.view.material import gather
    from sft_tune.view.report import report_html
    from sft_tune.view.words import size

    path = output if output is not None else Path(f"{study}-report.html")
    check_folder_of(path)
    with open_database(storage) as db:
        material = gather(db, study, time.time())
    versions = {name: version(name) for name in ("sft_tune", "optuna", "plotly")}
    path.write_text(report_html(material, versions), encoding="utf8")
    print(f"{path}  {size(path.stat().st_size)}")
