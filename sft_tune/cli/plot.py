"""`sft-tune plot`: one plot of a study, as a page or a picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from sft_tune.cli.options import Storage, StudyName
from sft_tune.session import open_database

Name = Literal[
    "history",
    "curves",
    "importances",
    "slice",
    "contour",
    "parallel",
    "cost",
    "timeline",
    "default",
]


def plot(
    study: StudyName,
    name: Annotated[Name, typer.Argument(metavar="PLOT", show_default=False, help="Which plot.")],
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="A page (.html) or a picture (.png, .svg, .pdf; needs 'sft_tune[pictures]' and "
            "Chromium). Default: STUDY-PLOT.html.",
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="slice and contour: of this hyperparameter; once for each. Default: the two "
            "most important.",
        ),
    ] = None,
    storage: Storage = None,
) -> None:
    """Plot history, curves, importances, slice, contour, parallel, cost, timeline or default.

    Example: sft-tune plot my-study slice --param learning_rate --save slice.html
    """
    from sft_tune.view.material import gather
    from sft_tune.view.plots.catalog import draw_plot, needs_importances, save_plot

    params = param or []
    with open_database(storage) as db:
        material = gather(db, study, time.time(), importances=needs_importances(name, params))
    drawing = draw_plot(material, name, params)
    path = save if save is not None else Path(f"{study}-{name}.html")
    save_plot(drawing, path, f"{study}: {name}")
    print(f"{drawing.title}\n{path}")
