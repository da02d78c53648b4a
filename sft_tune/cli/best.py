"""`sft-tune best`: the best trial of a study, for a person, a study file or a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sft_tune.cli.lookup import best_trial, default_point, standings_of
from sft_tune.cli.options import AsJson, Storage, StudyName
from sft_tune.cli.output import console, print_json
from sft_tune.errors import UserError
from sft_tune.session import open_database

if TYPE_CHECKING:
    from sft_tune.view.finalists import Standings


def best(
    study: StudyName,
    as_yaml: Annotated[
        bool,
        typer.Option("--yaml", help="Print its model and training sections, for a study file."),
    ] = False,
    as_json: AsJson = False,
    storage: Storage = None,
) -> None:
    """Show the best trial of a study.

    Example: sft-tune best my-study --yaml
    """
    if as_yaml and as_json:
        raise UserError("--yaml and --json cannot both be printed; give one")
    from sft_tune.store.reads import study_row

    with open_database(storage) as db:
        found = study_row(db, study)
        row = best_trial(db, study)
        default = None if as_yaml or as_json else default_point(db, found)
        confirmation = None if as_yaml or not found.managed else standings_of(db, study)
    if as_yaml:
        if row.config is None:
            raise UserError(
                f"trial {row.number} of study {study!r} was not made by sft_tune: its complete "
                "configuration is unknown; --json has its parameters"
            )
        from sft_tune.spec.config import TrialConfig
        from sft_tune.spec.dump import dump_training

        print(f"# trial {row.number} of study {study}: {found.metric} {row.value}")
        print(dump_training(TrialConfig.model_validate(row.config)), end="")
        return
    if as_json:
        from sft_tune.view.records import trial_json

        print_json(
            {
                "study": study,
                "metric": found.metric,
                **trial_json(row),
                "config": row.config,
                "confirmed": bool(confirmation and confirmation.confirmed),
                "leader": None if confirmation is None else confirmation.leader.number,
            }
        )
        return
    from sft_tune.view.trial import draw_best

    told = _confirmed(confirmation, study) if found.managed else None
    console().print(draw_best(found, row, default, told))


def _confirmed(confirmation: Standings | None, study: str) -> str:
    """Return whether the best trial is confirmed, in words."""
    if confirmation is None:
        return f"no; `sft-tune confirm {study}` trains it again over fresh seeds"
    # Statistics import numpy, which a study without finalists need not wait for.
    from sft_tune.view.finalists_words import confirmed_in_words, leader_in_words

    return "\n".join(
        filter(None, (confirmed_in_words(confirmation), leader_in_words(confirmation)))
    )
