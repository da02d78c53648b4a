"""The cache's entries of a data set: one of train and validation, one of test."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.spec.tasks import TASKS, Input, Task
from sft_tune.trial.data.audio import audio_encoder
from sft_tune.trial.data.box_encoder import BoxEncoder, sides
from sft_tune.trial.data.cache import Entry, key_of, open_or_build
from sft_tune.trial.data.columns import columns_of, reads_images
from sft_tune.trial.data.completions import completion_encoder
from sft_tune.trial.data.examples import UnreadableError
from sft_tune.trial.data.images import ImageEncoder, MixedSizesError, made_for
from sft_tune.trial.data.labels import check_agreement
from sft_tune.trial.data.masks import MaskEncoder
from sft_tune.trial.data.parts import Encoder, Part, write_parts
from sft_tune.trial.data.reading import part_of_test, parts_of_search
from sft_tune.trial.data.request import Request
from sft_tune.trial.data.tags import tag_encoder
from sft_tune.trial.data.text import text_encoder
from sft_tune.trial.data.translations import translation_encoder
from sft_tune.trial.data.unreadable import unreadable

# Part of every key: raise it when the same source and settings make other arrays.
FORMAT = 2
ENCODERS: dict[Input, Callable[[DataSpec, ModelSpec], Encoder]] = {
    "text": text_encoder,
    "words": tag_encoder,
    "audio": audio_encoder,
}
"""What is given to a model -> what writes it as arrays; images have theirs made below."""

WRITERS: dict[Task, Callable[[DataSpec, ModelSpec], Encoder]] = {
    "causal-lm": completion_encoder,
    "seq2seq": translation_encoder,
}
"""The same where a text is to be written, too."""


def entry_of_search(request: Request) -> tuple[Entry, Encoder]:
    """Return the entry of train and validation, and the encoder that it was made with.

    Raises:
        DataError: where the data is not what the study file says.
        ModelError: where the model's tokenizer or configuration is not to be had.
        SftTuneError: where the cache cannot be written.
    """
    data = request.data
    encoder: Encoder
    if not reads_images(request.task):
        facts = TASKS[request.task]
        make = WRITERS[request.task] if facts.writes else ENCODERS[facts.input]
        encoder = make(data, request.model)
        entry = _built_search(request, encoder)
    elif TASKS[request.task].boxes:
        encoder = BoxEncoder(*sides(request.model.name, data.image_size))
        entry = _built_search(request, encoder)
    else:
        side = data.image_size
        maker = MaskEncoder if TASKS[request.task].masks else ImageEncoder
        encoder = maker((side, side) if side else None)
        entry = _built_search(request, encoder)
        if "mixed_sizes" in entry.meta:
            side = made_for(request.model)
            encoder = maker((side, side))
            entry = _built_search(request, encoder)
    known = request.source.known_labels("test") if request.own_test else None
    if known is not None and TASKS[request.task].classes:
        kept = set(known) if data.classes is None else set(known) & set(map(str, data.classes))
        check_agreement(kept, entry.meta["labels"], request.where("test"))
    return entry, encoder


def _built_search(request: Request, encoder: Encoder) -> Entry:
    data, source = request.data, request.source
    fields = {
        **_common_fields(request, encoder),
        "train": source.identity("train"),
        "validation": source.identity("validation") if request.own_validation else None,
        "validation_fraction": None if request.own_validation else data.validation_fraction,
        "test_fraction": request.test_fraction,
        "limits": [data.train_limit, data.validation_limit],
    }
    if data.folds is not None:
        fields |= {"validation_fraction": None, "folds": [data.folds, data.fold or 0]}

    def build(folder: Path) -> dict[str, Any]:
        labels, chosen, held_out = parts_of_search(request)
        parts, stats = request.targets.finish(chosen, None)
        try:
            splits = _written(parts, encoder, folder)
        except MixedSizesError as error:
            for path in folder.glob("*.npy"):
                path.unlink()
            return {"mixed_sizes": str(error)}
        counts = {name: request.targets.counts(part, labels) for name, part in parts.items()}
        return {
            "labels": list(labels),
            "stats": stats,
            "splits": splits,
            "examples": {name: len(part.rows) for name, part in parts.items()},
            "class_counts": counts,
            "held_out": held_out,
        }

    return open_or_build(request.root, key_of(fields), build, about=_about(request))


def entry_of_test(request: Request, search: Entry, encoder: Encoder) -> Entry | None:
    """Return the entry of the test split; None where there is none.

    Args:
        request: what is to be prepared.
        search: the entry of train and validation.
        encoder: that made it.

    Raises:
        DataError: where the data is not what the study file says.
        SftTuneError: where the cache cannot be written.
    """
    data, source = request.data, request.source
    if not request.own_test and not request.test_fraction:
        return None
    labels = tuple(search.meta["labels"])
    if isinstance(encoder, ImageEncoder | MaskEncoder):
        height, width = search.meta["splits"]["train"]["size"]
        encoder = type(encoder)((height, width))
    fields = {
        **_common_fields(request, encoder),
        # Of the search's entry only these two matter to a test split of the source's own.
        "labels": labels,
        "stats": search.meta["stats"],
        "test": source.identity("test") if request.own_test else search.folder.name,
        "limit": data.test_limit,
    }

    def build(folder: Path) -> dict[str, Any]:
        part = part_of_test(request, labels)
        parts, _ = request.targets.finish({"test": part}, search.meta["stats"])
        return {
            "splits": _written(parts, encoder, folder),
            "examples": {"test": len(part.rows)},
            "class_counts": {"test": request.targets.counts(part, labels)},
        }

    about = f"{_about(request)} (test)"
    return open_or_build(request.root, key_of(fields), build, about=about)


def _common_fields(request: Request, encoder: Encoder) -> dict[str, Any]:
    data = request.data
    return {
        "format": FORMAT,
        "task": request.task,
        "columns": columns_of(request.task, data).wanted,
        "classes": data.classes,
        "ignore_index": data.ignore_index,
        "split_seed": data.split_seed,
        "encoder": encoder.identity,
        **({"box_format": data.box_format} if TASKS[request.task].boxes else {}),
        **({"skip_unreadable": True} if data.skip_unreadable else {}),
    }


def _written(
    parts: Mapping[str, Part], encoder: Encoder, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write ``parts``; of inputs that cannot be read all are named at once."""
    try:
        return write_parts(parts, encoder, folder)
    except UnreadableError as first:
        raise unreadable([part[:2] for part in parts.values()], first) from first


def _about(request: Request) -> str:
    """Return what an entry is made from, for people."""
    facts = TASKS[request.task]
    tokens = f", tokens of {request.model.name}" if facts.input == "text" else ""
    return f"{request.data.source}: {request.task}{tokens}"
