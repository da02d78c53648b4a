"""The model card of an export: what the weights are, how good, how they were found.

Computed by `make_card`, written as Markdown by `card_markdown`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sft_tune.spec.config import default_params
from sft_tune.store.finalists import FinalistRow
from sft_tune.store.records import StudyRecord
from sft_tune.store.rows import EvaluationRow, TrialRow
from sft_tune.view import noise, usage, words
from sft_tune.view.finalists import Standings, confirmed_in_words, plus_minus, standings
from sft_tune.view.summary import Summary, summarize
from sft_tune.view.tables import flat_settings

FILES = {
    "model.safetensors": "the weights",
    "model.onnx": "the same as ONNX, checked against torch's outputs",
    "config.json": "the network and its labels",
    "model.json": "the network, its labels, size and normalization of images",
    "load_model.py": "loads it; needs torch and torchvision (or timm) only",
    "convnet.py": "the network",
    "detectors.py": "the detector",
    "tokenizer.json": "the tokenizer, which cuts texts where training did",
    "tokenizer_config.json": "its settings",
    "preprocessor_config.json": "what is done to images",
    "study.yaml": "trains it again",
    "export.json": "this card for programs",
}


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
    fixed = {
        name: value
        for name, value in flat_settings(config).items()
        if name not in row.params and value is not None
    }
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
        fixed=fixed,
        search=_search(record, rows),
        confirmed=_confirmed(found, record.name, number),
        seed=config["seed"],
        versions=record.versions,
    )


def _confirmed(found: Standings | None, study: str, number: int) -> str:
    """Return whether fresh seeds confirm trial ``number``, in words."""
    if found is None:
        return f"no; `sft-tune confirm {study}` trains it again over fresh seeds"
    told = confirmed_in_words(found, study)
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
        if _averaged(exported):
            note += "; it chose what went into the average too"
        running = "mean over the steps before the best rung"
        if _averaged(exported):
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
    return SplitRow("test", examples, {found.metric: plus_minus(one.test)}, note)


def _search(record: StudyRecord, rows: Sequence[TrialRow]) -> str:
    spec = record.spec
    budget = [words.plural(record.max_trials, "trial")] if record.max_trials else []
    budget += [f"{words.number(record.max_hours)} hours"] if record.max_hours else []
    budget += [f"until {words.number(record.target)}"] if record.target is not None else []
    device = sum(row.seconds or 0.0 for row in rows)
    return (
        f"sampler {spec.sampler.name}, pruner {spec.pruner.name}, seed {spec.seed}; "
        f"budget {', '.join(budget) or 'open'}; {words.duration(record.active_seconds)} in all, "
        f"{words.duration(device)} on the device"
    )


def card_markdown(card: ModelCard) -> str:
    """Return ``card`` as the Markdown of a README.md."""
    exported = card.exported
    title = f"# {exported['study']}: {_what(exported)}"
    labels = exported["labels"]
    model = words.setting(exported["config"]["model"]["name"])
    lead = (
        f"{model} ({words.amount(exported['parameters'])} parameters), fine-tuned for {card.task}"
    )
    if exported["outputs"] not in ("number", "text"):
        shown = ", ".join(labels[:20]) + (", ..." if labels[20:] else "")
        lead += f" with {words.plural(len(labels), 'label')}: {shown}"
    parts = [
        _front_matter(card),
        title,
        f"{lead}.",
        "## Use",
        *usage.snippets(exported, card.task),
        "## Results",
        _results(card),
        *_confidence(card),
        "## How it was found",
        *_found(card),
        "## Configuration",
        *_configuration(card),
        "## Data",
        _data(card),
        "## Files",
        _files(card),
        "## The same again",
        f"```sh\nsft-tune train study.yaml --seed {card.seed}\n```",
        _again(card),
        "## Versions",
        ", ".join(f"{name} {version}" for name, version in card.versions.items()) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _averaged(exported: Mapping[str, Any]) -> bool:
    return len(exported["ingredients"]) > 1


def _what(exported: Mapping[str, Any]) -> str:
    if _averaged(exported):
        return f"the average of {len(exported['ingredients'])} trials"
    refit = ", trained on train and validation" if exported["weights"] == "refit" else ""
    return f"trial {exported['trial']}{refit}"


# Tasks that the hub calls otherwise.
PIPELINES = {"causal-lm": "text-generation", "seq2seq": "text-generation"}


def _front_matter(card: ModelCard) -> str:
    library = card.exported["library"]
    lines = [
        f"library_name: {library if library != 'builtin' else 'pytorch'}",
        f"pipeline_tag: {PIPELINES.get(card.task, card.task)}",
        "tags: [sft_tune, hyperparameter-optimization]",
    ]
    return "\n".join(["---", *lines, "---"])


def _results(card: ModelCard) -> str:
    names = list(dict.fromkeys(name for row in card.splits for name in row.metrics))
    rows = [
        [
            row.split,
            words.NOTHING if row.examples is None else str(row.examples),
            *(row.metrics.get(name, words.NOTHING) for name in names),
            row.note,
        ]
        for row in card.splits
    ]
    return _table(["split", "examples", *names, ""], rows)


def _confidence(card: ModelCard) -> list[str]:
    value = card.exported["validation"].get(card.metric)
    examples = card.exported["data"]["examples"]["validation"]
    if value is None or not examples:
        return []
    told = noise.measured(card.metric, value, examples)
    return [f"{card.metric} {told}. The best of many trials is chosen by it, so that it flatters."]


def _found(card: ModelCard) -> list[str]:
    summary, exported = card.summary, card.exported
    how = words.plural(sum(summary.counts.values()), "trial")
    parts = [f"{how} ({words.reasons(summary.counts)}): {card.search}."]
    rows = [["default configuration", words.score(summary.default)]]
    own = exported["validation"].get(card.metric)
    if summary.number is not None:
        rows.append([f"best of the search (trial {summary.number})", words.score(summary.best)])
    if own is not None and (_averaged(exported) or exported["trial"] != summary.number):
        rows.append([f"this one ({_what(exported)})", words.score(own)])
    parts.append(_table(["", f"{card.metric} on validation"], rows))
    parts.append(f"Confirmed: {card.confirmed}.")
    if exported["weights"] == "soup":
        parts.append(_soup(card))
    return parts


def _soup(card: ModelCard) -> str:
    """Return what was averaged, and what was not."""
    exported = card.exported
    into = ", ".join(map(str, exported["ingredients"]))
    told = "Greedy soup (Wortsman et al. 2022)."
    if _averaged(exported):
        told = f"Greedy soup (Wortsman et al. 2022) of trials {into}."
    for one in exported["tried"]:
        value = "" if one["value"] is None else f" ({card.metric} {words.score(one['value'])})"
        told += f" Trial {one['number']}{value}: {one['why'] or 'added'}."
    if not _averaged(exported):
        told += " No average was better on validation, so these are the weights of one trial."
    return told


def _configuration(card: ModelCard) -> list[str]:
    rows = [
        [f"`{name}`", value, "same" if default is None else default]
        for name, value, default in card.settings
    ]
    searched = [_table(["searched", "value", "default"], rows)] if rows else []
    return [*searched, f"Fixed: {words.settings(card.fixed)}."]


def _data(card: ModelCard) -> str:
    facts = card.exported["data"]
    told = [f"`{card.source}`"]
    if facts["validation_from"] == "train":
        told.append("validation was taken from train")
    if card.exported["image_size"]:
        height, width = card.exported["image_size"]
        told.append(f"images of {width}x{height} pixels")
    if card.exported["max_length"]:
        told.append(f"texts cut to {card.exported['max_length']} tokens")
    return ", ".join(told) + "."


def _files(card: ModelCard) -> str:
    names = [name for name in FILES if name in set(card.exported["files"])]
    return _table(["file", ""], [[f"`{name}`", FILES[name]] for name in names])


def _again(card: ModelCard) -> str:
    told = "With the same versions, on the same CPU and number of threads, bit for bit."
    if card.exported["weights"] == "refit":
        told += " That trains on train alone; these weights were trained on validation too."
    elif _averaged(card.exported):
        told += " That trains the first ingredient."
    return told


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
