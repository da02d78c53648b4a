"""From a study file's `data` section to arrays: read, split, encode once, open ever after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sft_tune.errors import DataError
from sft_tune.spec.study import DataSpec, ModelSpec, Task
from sft_tune.spec.tasks import TASKS, Input
from sft_tune.trial.data.arrays import Prepared, load_split
from sft_tune.trial.data.audio import audio_encoder
from sft_tune.trial.data.boxes import BoxEncoder, sides
from sft_tune.trial.data.cache import Entry, key_of, open_or_build, prepared_root
from sft_tune.trial.data.columns import columns_of, reads_images
from sft_tune.trial.data.completions import completion_encoder
from sft_tune.trial.data.examples import Examples, Source, SplitName, UnreadableError, reason
from sft_tune.trial.data.images import ImageEncoder, MixedSizesError, made_for
from sft_tune.trial.data.labels import check_agreement
from sft_tune.trial.data.masks import MaskEncoder
from sft_tune.trial.data.parts import Encoder, Part, write_parts
from sft_tune.trial.data.sources import open_source
from sft_tune.trial.data.splits import Parts, split_train, take_at_most
from sft_tune.trial.data.tags import tag_encoder
from sft_tune.trial.data.target_kinds import Targets
from sft_tune.trial.data.targets import targets_of
from sft_tune.trial.data.text import check_texts, text_encoder
from sft_tune.trial.data.translations import translation_encoder
from sft_tune.trial.data.unreadable import only_readable, unreadable

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


def prepare(
    task: Task, data: DataSpec, model: ModelSpec, *, cache: Path, with_test: bool = False
) -> Prepared:
    """Prepare a data set, or open what an earlier call has prepared.

    Args:
        task: what the examples are for.
        data: the study file's section.
        model: the model that is fine-tuned: its tokenizer makes the tokens, and images of mixed
            sizes are resized to what it was made for.
        cache: folder of prepared and downloaded data; safe to share between processes.
        with_test: prepare the test split too. Else it is not read, only known to exist.

    Raises:
        DataError: where the data is not what the study file says.
        ModelError: where the model's tokenizer or configuration is not to be had.
        SftTuneError: where the cache cannot be written.
    """
    try:
        request = _request(task, data, model, cache, with_test)
        entry, encoder = _search_entry(request)
        test = _test_entry(request, entry, encoder) if with_test else None
    except OSError as error:
        raise DataError(
            f"{data.source} cannot be read: {reason(error)}. Mend the file or its permissions."
        ) from error
    splits = entry.meta["splits"]
    return Prepared(
        labels=tuple(entry.meta["labels"]),
        train=load_split(entry.folder, "train", splits["train"]),
        validation=load_split(entry.folder, "validation", splits["validation"]),
        test=load_split(test.folder, "test", test.meta["splits"]["test"]) if test else None,
        stats=entry.meta["stats"],
        facts=_facts(request, entry.meta, test.meta if test else None),
        identity=entry.folder.name,
        test_identity=test.folder.name if test else "",
        tokenizer=getattr(encoder, "folder", None),
    )


@dataclass(frozen=True)
class _Request:
    """What is to be prepared, and which splits the source has of its own."""

    task: Task
    data: DataSpec
    model: ModelSpec
    source: Source
    root: Path
    own_validation: bool
    own_test: bool | None  # None: not known, since only reading it would tell

    @property
    def targets(self) -> Targets:
        """The reader of the targets."""
        return targets_of(self.task, self.data)

    @property
    def test_fraction(self) -> float:
        """The share of train that test is taken from it; 0 where the source has its own."""
        return 0.0 if self.own_test else self.data.test_fraction

    def where(self, split: str) -> str:
        return f"the {split} split of {self.data.source}"


def _request(
    task: Task, data: DataSpec, model: ModelSpec, cache: Path, with_test: bool
) -> _Request:
    source = open_source(task, data, cache)
    source.has("train")  # first, so that a source that fails at all fails for train
    # A function has to be called to know, so it is asked only where the answer matters.
    own_test = source.has("test", ask=with_test or data.test_fraction > 0)
    own_validation = data.folds is None and bool(source.has("validation"))
    return _Request(task, data, model, source, prepared_root(cache), own_validation, own_test)


def _search_entry(request: _Request) -> tuple[Entry, Encoder]:
    """Return the entry of train and validation, and the encoder that it was made with."""
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


def _built_search(request: _Request, encoder: Encoder) -> Entry:
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
        labels, chosen, held_out = _search_parts(request)
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


def _about(request: _Request) -> str:
    """Return what an entry is made from, for people."""
    facts = TASKS[request.task]
    tokens = f", tokens of {request.model.name}" if facts.input == "text" else ""
    return f"{request.data.source}: {request.task}{tokens}"


def _common_fields(request: _Request, encoder: Encoder) -> dict[str, Any]:
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


def _search_parts(request: _Request) -> tuple[tuple[str, ...], dict[str, Part], int]:
    """Read train, and validation where the source has it.

    Returns:
        The labels, the parts by split, and how many examples are held out as test.
    """
    data, seed = request.data, request.data.split_seed
    whole, labels = _read(request, "train", None)
    rows = _split(request, whole)
    remedy = "Add examples."  # what was read was enough: only a limit can have made it less
    train = whole.take(rows.train)
    if request.own_validation:
        validation, _ = _read(request, "validation", labels)
    else:
        validation = whole.take(rows.validation)
        share = "lower data.folds" if data.folds else "raise data.validation_fraction"
        remedy = f"Add examples, or {share}."
    train = train.take(take_at_most(train.strata, data.train_limit, seed, "train_limit"))
    request.targets.check_train(train, labels, request.where("train"))
    chosen = take_at_most(validation.strata, data.validation_limit, seed, "validation_limit")
    if len(chosen) < len(validation.rows):
        remedy = "Raise data.validation_limit."
    validation = validation.take(chosen)
    request.targets.check(validation, labels, request.where("validation"), remedy)
    held_out = len(rows.test) if data.test_limit is None else min(len(rows.test), data.test_limit)
    return labels, {"train": train, "validation": validation}, held_out


def _split(request: _Request, whole: Part) -> Parts:
    fraction = 0.0 if request.own_validation else request.data.validation_fraction
    return split_train(
        whole.strata,
        validation_fraction=fraction,
        test_fraction=request.test_fraction,
        seed=request.data.split_seed,
        folds=request.data.folds,
        fold=request.data.fold or 0,
    )


def _read(
    request: _Request, split: SplitName, labels: tuple[str, ...] | None
) -> tuple[Part, tuple[str, ...]]:
    """Read a split and its labels; without ``labels``, those found are the data set's."""
    where = request.where(split)
    examples = request.source.read(split)
    chats = request.data.messages_column is not None
    texts = TASKS[request.task].input == "text" and split != "test" and not chats
    settings = tuple(columns_of(request.task, request.data).inputs)
    try:
        part, labels = request.targets.read(examples, request.data, where, labels)
    except DataError as error:
        if texts:  # what is wrong with them is said in the same breath
            _also_texts(examples, where, settings, error)
        raise
    if texts:
        check_texts(examples, part.rows, where, settings)
    if request.data.skip_unreadable:
        part = only_readable(part, request.task)
    return part, labels


def _also_texts(
    examples: Examples, where: str, settings: tuple[str, ...], error: DataError
) -> None:
    """Raise ``error`` together with what is wrong with the texts, if anything is."""
    try:
        check_texts(examples, np.arange(len(examples.inputs)), where, settings)
    except DataError as other:
        raise DataError(f"{error}\n{other}") from error


def _test_entry(request: _Request, search: Entry, encoder: Encoder) -> Entry | None:
    """Return the entry of the test split; None where there is none."""
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
        if request.own_test:
            part, _ = _read(request, "test", labels)
        else:
            whole, _ = _read(request, "train", None)
            part = whole.take(_split(request, whole).test)
        part = part.take(take_at_most(part.strata, data.test_limit, data.split_seed, "test_limit"))
        remedy = "Add examples, or raise data.test_limit."
        request.targets.check(part, labels, request.where("test"), remedy)
        parts, _ = request.targets.finish({"test": part}, search.meta["stats"])
        return {
            "splits": _written(parts, encoder, folder),
            "examples": {"test": len(part.rows)},
            "class_counts": {"test": request.targets.counts(part, labels)},
        }

    about = f"{_about(request)} (test)"
    return open_or_build(request.root, key_of(fields), build, about=about)


def _facts(
    request: _Request, search: Mapping[str, Any], test: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return what is known about the data set, JSON-able."""
    splits = {**search["splits"], **(test["splits"] if test else {})}
    counts = {**search["class_counts"], **(test["class_counts"] if test else {})}
    examples: dict[str, int | None] = {**search["examples"], **(test["examples"] if test else {})}
    if "test" not in examples:
        examples["test"] = search["held_out"] if request.test_fraction else None
    fraction = "train" if request.test_fraction else "none"
    facts: dict[str, Any] = {
        "source": request.data.source,
        "examples": examples,
        "class_counts": counts,
        "validation_from": "source" if request.own_validation else "train",
        "test_from": {True: "source", False: fraction, None: "unknown"}[request.own_test],
    }
    if TASKS[request.task].input == "audio":
        facts["audio"] = {split: meta["audio"] for split, meta in splits.items()}
    elif not reads_images(request.task):
        facts["tokens"] = {split: meta["tokens"] for split, meta in splits.items()}
        if "target_tokens" in splits["train"]:
            facts["target_tokens"] = {s: meta["target_tokens"] for s, meta in splits.items()}
    else:
        facts["image_size"] = splits["train"]["size"]
        facts["resized"] = {split: meta["resized"] for split, meta in splits.items()}
    return facts
