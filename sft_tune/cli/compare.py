"""`sft-tune compare`: studies side by side, or the values of one hyperparameter."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sft_tune.cli.options import AsJson, Storage
from sft_tune.cli.output import check_folder_of, console, print_json
from sft_tune.errors import UserError
from sft_tune.session import compare_studies, open_database, place_of

if TYPE_CHECKING:
    from sft_tune.view.marginal import Marginal


def compare(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY...",
            show_default=False,
            help="Names; DATABASE#NAME (a .db file or a URL) for one in another database.",
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Of one study: the effect of this hyperparameter.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            show_default=False,
            help="Write it as a page with pictures, too.",
        ),
    ] = None,
    as_json: AsJson = False,
    storage: Storage = None,
) -> None:
    """Compare studies of one objective: what each found, for how many trials and how much time.

    With --by: the values of one hyperparameter of one study, pruned trials counted fairly.

    Example: sft-tune compare with-tpe with-random -o compare.html
    """
    if output is not None:
        check_folder_of(output)
    if by is not None:
        _by(studies, by, output, as_json, storage)
        return
    from sft_tune.view.contest_tables import contest_json, draw_tables, in_words, tables

    found = compare_studies(studies, storage)
    if as_json:
        print_json(contest_json(found.result))
    else:
        console().print(draw_tables(tables(found.result), in_words(found.result)))
    if output is not None:
        _write(output, found.to_html(), as_json)


def _by(
    studies: list[str], name: str, output: Path | None, as_json: bool, storage: str | None
) -> None:
    from sft_tune.view.contest_tables import draw_tables
    from sft_tune.view.marginal import marginal_cells, marginal_json, marginal_words

    if len(studies) != 1:
        raise UserError(f"--by is of one study (got {len(studies)}); name one")
    found = _marginal(studies[0], name, storage)
    if as_json:
        print_json(marginal_json(found))
    else:
        console().print(draw_tables([marginal_cells(found)], marginal_words(found)))
    if output is not None:
        from sft_tune.view.comparison import marginal_html

        _write(output, marginal_html(found), as_json)


def _marginal(study: str, name: str, storage: str | None) -> Marginal:
    from sft_tune.view.judgement import evidence_of, unit_of
    from sft_tune.view.marginal import marginal
    from sft_tune.view.material import gather

    url, study_name = place_of(study, storage)
    with open_database(url) as db:
        material = gather(db, study_name, time.time(), importances=False)
    return marginal(evidence_of(material), name, unit=unit_of(material))


def _write(path: Path, page: str, as_json: bool) -> None:
    path.write_text(page, encoding="utf8")
    if not as_json:
        print(path)
