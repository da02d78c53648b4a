"""`sft-tune prune-checkpoints`: fewer weights on disk."""

from __future__ import annotations

from typing import Annotated

import typer

from sft_tune.cli.options import Storage, StudyName
from sft_tune.session import open_database


def prune_checkpoints(
    study: StudyName,
    keep: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many of the best trials keep theirs.")
    ] = 1,
    storage: Storage = None,
) -> None:
    """Delete the weights of all but the best trials of a study; rows stay.

    Example: sft-tune prune-checkpoints my-study --keep 3
    """
    from sft_tune.run.retention import drop_surplus
    from sft_tune.store.records import find_study
    from sft_tune.view import words

    with open_database(storage, create=True) as db:
        record = find_study(db, study)
        maximize = record.direction == "maximize"
        dropped, freed = drop_surplus(db, record.id, record.artifacts, keep, maximize=maximize)
    print(f"{words.plural(dropped, 'checkpoint')} deleted, {words.size(freed)} freed")
