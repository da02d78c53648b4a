"""`sft-tune export`: the fine-tuned model in its library's own format, proved before it is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sft_tune.cli.options import AsJson, Storage, StudyName
from sft_tune.cli.output import console, print_json
from sft_tune.cli.stopping import EXIT_CODE, Stopping, say_at_once
from sft_tune.session import export_study, open_database, way_of_export

if TYPE_CHECKING:
    from rich.console import Console

    from sft_tune.run.exported import Exported
    from sft_tune.store.database import Database


def export(
    study: StudyName,
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", show_default=False, help="A new or empty folder."),
    ],
    trial: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, show_default=False, help="This trial, not the best."),
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Train on train and validation together first.")
    ] = False,
    soup: Annotated[
        bool,
        typer.Option("--soup", help="Average the best trials greedily, as far as that helps."),
    ] = False,
    form: Annotated[
        Literal["native", "onnx"],
        typer.Option("--format", help="native: the library's own; onnx: model.onnx beside that."),
    ] = "native",
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier export in DIR.")
    ] = False,
    as_json: AsJson = False,
    storage: Storage = None,
) -> None:
    """Write the best model of a study in its library's own format, ready to hand on.

    With a model card (README.md), and a study file that trains it again (study.yaml). The files
    are loaded in a fresh process and validation is evaluated again; only if that gives the
    trial's numbers does DIR appear (else exit code 1, and nothing is left).

    Example: sft-tune export my-study model/
    """
    how = way_of_export(trial, refit=refit, soup=soup)
    out = console(stderr=as_json)
    stopping = Stopping()
    with open_database(storage) as db:
        try:
            with stopping:
                exported = export_study(
                    *(db, study, folder),
                    trial=trial,
                    how=how,
                    onnx=form == "onnx",
                    force=force,
                    notify=lambda text: out.print(text, soft_wrap=True),
                )
        except KeyboardInterrupt:
            say_at_once("interrupted: nothing was exported")
            raise typer.Exit(stopping.exit_code or EXIT_CODE) from None
        if as_json:
            print_json({"folder": exported.folder, **exported.to_json()})
            return
        _say_done(exported, db, out)


def _say_done(exported: Exported, db: Database, out: Console) -> None:
    from sft_tune.store.records import find_study
    from sft_tune.view import words

    metric = find_study(db, exported.study).metric
    if exported.how == "soup":
        into = exported.ingredients
        told = f"the average of trials {', '.join(map(str, into))}"
        if len(into) == 1:
            told = f"trial {into[0]}: no average with another was better on validation"
        out.print(told, soft_wrap=True)
    if exported.how == "refit":
        out.print(
            "the files give the logits of the refit weights; validation, which was trained on, "
            "says nothing any more",
            soft_wrap=True,
        )
    else:
        examples = exported.facts["data"]["examples"]["validation"]
        out.print(
            f"{metric} {words.score(exported.metrics[metric])} on validation "
            f"({words.plural(examples, 'example')}), the same from the exported files",
            soft_wrap=True,
        )
    out.print(f"exported to {words.short_path(exported.folder)}; its README.md says how to use it")
