"""What the model card of an export says: what the weights are, how good, how they were found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sft_tune.spec.config import default_params
from sft_tune.spec.plan import weighs_cost
from sft_tune.store.finalist_rows import FinalistRow
from sft_tune.store.records import StudyRecord
from sft_tune.store.rows import EvaluationRow, TrialRow
from sft_tune.view import words
from sft_tune.view.finalists import Standings, standings
from sft_tune.view.finalists_words import confirmed_in_words
from sft_tune.view.summary import Summary, summarize
from sft_tune.view.tables import fixed_settings


class SplitRow(NamedTuple):
    """What is known of a split: its size, its metrics as text, and what they are of."""

    split: str
    examples: int | None
    metrics: Mapping[str, str]
    note: str


class ModelCard(NamedTuple):
    """What the card says.

    Attributes:
        exported: what was exported (see `Exported.to_json`).
        task: the study's.
        metric: the objective.
        source: of the data.
        splits: a row a split.
        summary: of the study.
        settings: name, value, default (None where it is the same) of each searched setting.
        fixed: the other settings.
        search: how it was searched, in words.
        confirmed: whether fresh seeds confirm it, in words.
        seed: of the trial.
        versions: of the libraries that trained it.
    """

    exported: Mapping[str, Any]
    task: str
    metric: str
    source: str
    splits: tuple[SplitRow, ...]
    summary: Summary
    settings: tuple[tuple[str, str, str | None], ...]
    fixed: Mapping[str, Any]
    search: str
    confirmed: str
    seed: int
    versions: Mapping[str, str]


def make_card(
    record: StudyRecord,
    rows: Sequence[TrialRow],
    rungs: Sequence[EvaluationRow],
    runs: Sequence[FinalistRow],
    exported: Mapping[str, Any],
) -> ModelCard:
    """Return the card of ``exported``.

    Args:
        record: the study.
        rows: its trials.
        rungs: of the exported trial.
        runs: confirmation runs of the study.
        exported: what was exported (see `Exported.to_json`).
    """
    number = exported["trial"]
    row = next(one for one in rows if one.number == number)
    found = standings(record.spec, rows, runs) if runs else None
    default = default_params(record.spec)
    config = exported["config"]
    return ModelCard(
        exported=exported,
        task=record.task,
        metric=record.metric,
        source=config["data"]["source"],
        splits=_splits(row, rungs, found, exported),
        summary=summarize(
            record.spec, rows, record.active_seconds, exported["data"]["examples"]["validation"]
        ),
        settings=tuple(
            (name, words.setting(value), _default_of(name, value, default))
            for name, value in row.params.items()
        ),
        fixed=fixed_settings(config, row.params),
        search=_search(record, rows),
        confirmed=_confirmed(found, record.name, number),
        seed=config["seed"],
        versions=record.versions,
    )


def averaged(exported: Mapping[str, Any]) -> bool:
    """Tell whether the weights of ``exported`` are an average of several trials."""
    return len(exported["ingredients"]) > 1


def _confirmed(found: Standings | None, study: str, number: int) -> str:
    """Return whether fresh seeds confirm trial ``number``, in words."""
    if found is None:
        return f"no; `sft-tune confirm {study}` trains it again over fresh seeds"
    told = confirmed_in_words(found)
    if found.winner == number:
        return told
    return f"no; of trial {found.winner}, which won the search, it is known: {told}"


def _default_of(name: str, value: Any, default: Mapping[str, Any]) -> str | None:
    if name not in default:
        return words.NOTHING
    return None if default[name] == value else words.setting(default[name])


def _splits(
    row: TrialRow,
    rungs: Sequence[EvaluationRow],
    found: Standings | None,
    exported: Mapping[str, Any],
) -> tuple[SplitRow, ...]:
    sizes = exported["data"]["examples"]
    at_best = next((rung for rung in rungs if rung.progress == row.best_progress), None)
    loss = {} if at_best is None or at_best.train_loss is None else {"loss": at_best.train_loss}
    if exported["weights"] == "refit":
        both = (sizes["train"] or 0) + (sizes["validation"] or 0)
        note = "trained on both: no number here says anything about new examples"
        told = [SplitRow("train + validation", both, {}, note)]
    else:
        measured = exported["validation"]
        shown = {name: words.score(value) for name, value in measured.items()}
        note = "measured with these files"
        if averaged(exported):
            note += "; it chose what went into the average too"
        running = "mean over the steps before the best rung"
        if averaged(exported):
            loss = {}
        told = [
            SplitRow("train", sizes["train"], _shown(loss), running if loss else ""),
            SplitRow("validation", sizes["validation"], shown, note),
        ]
    return (*told, _test_row(row.number, sizes.get("test"), found))


def _shown(metrics: Mapping[str, float]) -> dict[str, str]:
    return {name: words.score(value) for name, value in metrics.items()}


def _test_row(number: int, examples: int | None, found: Standings | None) -> SplitRow:
    finalists = () if found is None else found.finalists
    one = next((one for one in finalists if one.number == number), None)
    if found is None or one is None or one.test is None:
        return SplitRow("test", examples, {}, "not evaluated: `sft-tune confirm` does, once")
    seeds = words.plural(one.test.n, "fresh seed")
    note = f"this configuration over {seeds}, not these weights"
    return SplitRow("test", examples, {found.metric: words.plus_minus(one.test)}, note)


def _search(record: StudyRecord, rows: Sequence[TrialRow]) -> str:
    spec = record.spec
    budget = [words.plural(record.max_trials, "trial")] if record.max_trials else []
    budget += [f"{words.number(record.max_hours)} hours"] if record.max_hours else []
    budget += [f"until {words.number(record.target)}"] if record.target is not None else []
    device = sum(row.seconds or 0.0 for row in rows)
    weighed = " (cost-aware)" if weighs_cost(spec) else ""
    return (
        f"sampler {spec.sampler.name}{weighed}, pruner {spec.pruner.name}, seed {spec.seed}; "
        f"budget {', '.join(budget) or 'open'}; {words.duration(record.active_seconds)} in all, "
        f"{words.duration(device)} on the device"
    )
