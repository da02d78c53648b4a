"""A model card written as the Markdown of a README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft_tune.view import noise, usage, words
from sft_tune.view.model_card import ModelCard, averaged

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

# Tasks that the hub calls otherwise.
PIPELINES = {"causal-lm": "text-generation", "seq2seq": "text-generation"}


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


def _what(exported: Mapping[str, Any]) -> str:
    if averaged(exported):
        return f"the average of {len(exported['ingredients'])} trials"
    refit = ", trained on train and validation" if exported["weights"] == "refit" else ""
    return f"trial {exported['trial']}{refit}"


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
    if own is not None and (averaged(exported) or exported["trial"] != summary.number):
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
    if averaged(exported):
        told = f"Greedy soup (Wortsman et al. 2022) of trials {into}."
    for one in exported["tried"]:
        value = "" if one["value"] is None else f" ({card.metric} {words.score(one['value'])})"
        told += f" Trial {one['number']}{value}: {one['why'] or 'added'}."
    if not averaged(exported):
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
    elif averaged(card.exported):
        told += " That trains the first ingredient."
    return told


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
