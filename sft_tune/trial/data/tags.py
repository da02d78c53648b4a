"""Words with tags: tokenized into pieces, the first piece of each word carrying its tag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_tune.errors import DataError, ModelError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data.arrays import UNTAGGED, array_path
from sft_tune.trial.data.cache import save
from sft_tune.trial.data.examples import Examples, listed
from sft_tune.trial.data.labels import check_agreement
from sft_tune.trial.data.parts import Part
from sft_tune.trial.data.target_kinds import Found, Labels, Stats
from sft_tune.trial.data.text import (
    length_facts,
    load_tokenizer,
    padding_of,
    text_encoder,
    token_limit,
)

OUTSIDE = "O"
_CHUNK = 1000


class TagTargets:
    """A tag for each word; of an example the number of its words is stored, int64 [n]."""

    def read(self, examples: Examples, data: DataSpec, where: str, labels: Labels | None) -> Found:
        """Return all examples, their tags as indices."""
        tags = [_checked(examples, i, where) for i in range(len(examples.labels))]
        found = {tag for row in tags for tag in row}
        if labels is None:
            labels = (OUTSIDE, *sorted(found - {OUTSIDE}))
        else:
            check_agreement(found, labels, where)
        index = {label: k for k, label in enumerate(labels)}
        indices = [np.array([index[tag] for tag in row], dtype=np.int32) for row in tags]
        indexed = Examples(examples.inputs, indices, examples.place)
        counts = np.array([len(row) for row in tags], dtype=np.int64)
        part = Part(indexed, np.arange(len(tags)), counts, np.zeros(len(tags), dtype=np.int64))
        self.check(part, labels, where, "Mend the source or data.tags_column.")
        return Found(part, labels)

    def check(self, part: Part, labels: Labels, where: str, remedy: str) -> None:
        """Check that there are examples, and a tag beside O."""
        if not len(part.rows):
            raise DataError(f"{where} has no examples. {remedy}")
        if len(labels) < 2:
            raise DataError(f"{where} has no tag but {OUTSIDE}. {remedy}")

    def check_train(self, part: Part, labels: Labels, where: str) -> None:
        """Check that a limit has left some word that is tagged."""
        if not any(self.counts(part, labels[1:]).values()):
            raise DataError(f"{where} is left without tagged words. Raise data.train_limit.")

    def counts(self, part: Part, labels: Labels) -> dict[str, int]:
        """Return the number of words of each tag in the last ``labels``; of O only where named."""
        flat = np.concatenate([part.examples.labels[i] for i in part.rows])
        first = 0 if labels and labels[0] == OUTSIDE else 1
        counts = np.bincount(flat, minlength=len(labels) + first)[first:]
        return {label: int(n) for label, n in zip(labels, counts, strict=True)}

    def finish(
        self, parts: Mapping[str, Part], stats: Stats | None
    ) -> tuple[dict[str, Part], Stats]:
        """Return ``parts`` as they are."""
        return dict(parts), {}


def _checked(examples: Examples, i: int, where: str) -> list[str]:
    """Return the tags of example ``i``, one a word."""
    words, tags, place = examples.inputs[i], examples.labels[i], examples.place(i)
    for name, value in (("tokens", words), ("tags", tags)):
        if not isinstance(value, list | tuple | np.ndarray) or not len(value):
            raise DataError(
                f"{where}: {name} must be a list, one entry a word (got {str(value)[:60]!r} at "
                f"{place}). Name the right data.{name}_column; CSV cannot hold lists."
            )
        if bad := [v for v in value if not isinstance(v, str) or not v.strip()]:
            raise DataError(
                f"{where}: {name} must be texts, none missing (got {str(bad[0])[:60]!r} at "
                f"{place}). Write tags as O, B-PER, I-PER, and remove empty words."
            )
    if len(words) != len(tags):
        raise DataError(
            f"{where}: {len(words)} tokens, but {len(tags)} tags at {place}. Give one tag a word."
        )
    if wrong := [t for t in tags if t != OUTSIDE and not (t[:2] in ("B-", "I-") and t[2:])]:
        raise DataError(
            f"{where}: a tag is O, B-KIND or I-KIND, not {listed(wrong[:1])} (at {place}). "
            "Name the right data.tags_column."
        )
    return list(tags)


@dataclass(frozen=True)
class TagEncoder:
    """Writes words and their tags as arrays of pieces.

    Attributes:
        folder: where the model's tokenizer lies.
        max_length: the study file's limit, in pieces, special ones included.
    """

    folder: Path
    max_length: int
    text_identity: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the arrays, besides the words and tags."""
        return {**self.text_identity, "kind": "words"}

    def write(
        self, examples: Examples, rows: NDArray[np.int64], folder: Path, split: str
    ) -> dict[str, Any]:
        """Tokenize the examples ``rows`` to arrays of ``split``; return facts.

        Words beyond the limit are cut with their tags: they are neither learned nor counted.

        Raises:
            ModelError: where the model has no tokenizer that tells which word a piece is of.
        """
        tokenizer = load_tokenizer(self.folder)
        if not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer in {self.folder} does not tell which word a piece is of; "
                "give a model with a fast tokenizer (tokenizer.json)"
            )
        limit, source = token_limit(self.folder, tokenizer, self.max_length)
        ids: list[int] = []
        tags: list[int] = []
        ends: list[int] = [0]
        lengths: list[int] = []
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK].tolist()
            words = [list(examples.inputs[i]) for i in chunk]
            pieces = tokenizer(words, is_split_into_words=True, truncation=False, verbose=False)
            lengths += [len(row) for row in pieces["input_ids"]]
            cut = tokenizer(words, is_split_into_words=True, truncation=True, max_length=limit)
            for k, i in enumerate(chunk):
                ids += cut["input_ids"][k]
                tags += _aligned(cut.word_ids(k), examples.labels[i])
                ends.append(len(ids))
        save(array_path(folder, split, "tokens"), np.array(ids, dtype=np.int32))
        save(array_path(folder, split, "tags"), np.array(tags, dtype=np.int32))
        save(array_path(folder, split, "offsets"), np.array(ends, dtype=np.int64))
        facts = length_facts(np.array(lengths), limit)
        return {
            "kind": "text",
            **padding_of(tokenizer),
            "tokens": {**facts, "limit_from": source, "missing_texts": 0},
        }


def _aligned(word_ids: list[int | None], tags: NDArray[np.int32]) -> list[int]:
    """Return the tag of each piece: a word's first piece has its tag, all else `UNTAGGED`."""
    found: list[int] = []
    before: int | None = None
    for word in word_ids:
        first = word is not None and word != before
        found.append(int(tags[word]) if first and word is not None else UNTAGGED)
        before = word
    return found


def tag_encoder(data: DataSpec, model: ModelSpec) -> TagEncoder:
    """Return the encoder for the tokenizer of ``model``.

    Raises:
        ModelError: where the model is none of transformers, or its files are not to be had.
    """
    plain = text_encoder(data, model)
    return TagEncoder(plain.folder, plain.max_length, plain.identity)
