"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyFile = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY.yaml", show_default=False, help="The study file (YAML, JSON or TOML)."
    ),
]
StudyName = Annotated[
    str,
    typer.Argument(metavar="STUDY", show_default=False, help="Name of a study in the database."),
]
Number = Annotated[
    int,
    typer.Argument(metavar="N", min=0, show_default=False, help="Number of a trial of the study."),
]
Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        show_default=False,
        help="The study database: a .db file or a URL. Default: SFT_TUNE_STORAGE, else "
        "sft_tune.db in the working directory.",
    ),
]
FileStorage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        show_default=False,
        help="The study database: a .db file or a URL. Default: storage.url of the study file, "
        "else SFT_TUNE_STORAGE, else sft_tune.db in the working directory.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
TotalTrials = Annotated[
    int | None,
    typer.Option(metavar="N", show_default=False, help="Total of trials, over restarts."),
]
TotalHours = Annotated[
    float | None,
    typer.Option(metavar="H", show_default=False, help="Total of hours, over restarts."),
]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="Go on although sampler, pruner, seed or space changed."),
]
