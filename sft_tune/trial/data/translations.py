"""What a model reads and what it is to write, each with tokens of its own: source and target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data.arrays import array_path
from sft_tune.trial.data.cache import save
from sft_tune.trial.data.examples import Examples
from sft_tune.trial.data.text import (
    length_facts,
    load_tokenizer,
    padding_of,
    text_encoder,
    texts_of,
    token_limit,
)

_CHUNK = 1000


@dataclass(frozen=True)
class TranslationEncoder:
    """Writes sources and targets as token arrays, and the targets to be measured by as texts.

    Attributes:
        folder: where the model's tokenizer lies.
        max_length: the study file's limit for sources, in tokens, special ones included.
        text_identity: of the tokenizer and the limit.
        prefix: what is put before each source.
        max_target_length: the limit for targets.
    """

    folder: Path
    max_length: int
    text_identity: dict[str, Any]
    prefix: str
    max_target_length: int

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the arrays, besides the texts."""
        form = {"prefix": self.prefix, "max_target_length": self.max_target_length}
        return {**self.text_identity, **form, "kind": "translations"}

    def write(
        self, examples: Examples, rows: NDArray[np.int64], folder: Path, split: str
    ) -> dict[str, Any]:
        """Tokenize the examples ``rows`` to arrays of ``split``; return facts.

        Sources and targets that are too long lose their end; what is written is measured by the
        whole targets.

        Raises:
            DataError: for a source that is no text.
            ModelError: where the model has no tokenizer that can be loaded.
        """
        tokenizer = load_tokenizer(self.folder)
        limit, source = token_limit(self.folder, tokenizer, self.max_length)
        most, _ = token_limit(self.folder, tokenizer, self.max_target_length)
        given, missing = texts_of(examples, rows, split, "source_column")
        texts = [examples.labels[i] for i in rows.tolist()]
        read = _tokens(tokenizer, [self.prefix + text for text in given], limit, "text")
        wanted = _tokens(tokenizer, texts, most, "text_target")
        _save(folder, split, ("tokens", "offsets"), read.ids)
        _save(folder, split, ("answers", "answer_offsets"), wanted.ids)
        if split != "train":
            letters = [np.frombuffer(text.encode(), np.uint8) for text in texts]
            _save(folder, split, ("references", "reference_offsets"), letters, np.uint8)
        return {
            "kind": "text",
            **padding_of(tokenizer),
            "tokens": {
                **length_facts(np.array(read.lengths), limit),
                "limit_from": source,
                "missing_texts": missing,
            },
            "target_tokens": length_facts(np.array(wanted.lengths), most),
        }


def translation_encoder(data: DataSpec, model: ModelSpec) -> TranslationEncoder:
    """Return the encoder for the tokenizer of ``model``.

    Raises:
        ModelError: where the model is none of transformers, or its files are not to be had.
    """
    plain = text_encoder(data, model)
    rest = (data.source_prefix, data.max_target_length)
    return TranslationEncoder(plain.folder, plain.max_length, plain.identity, *rest)


@dataclass(frozen=True)
class _Tokens:
    """Texts as tokens after the cut, and their lengths before it."""

    ids: list[list[int]]
    lengths: list[int]


def _tokens(tokenizer: Any, texts: Sequence[str], limit: int, side: str) -> _Tokens:
    found = _Tokens([], [])
    for start in range(0, len(texts), _CHUNK):
        chunk = {side: list(texts[start : start + _CHUNK])}
        whole = tokenizer(**chunk, truncation=False, verbose=False)["input_ids"]
        found.lengths.extend(len(row) for row in whole)
        cut = tokenizer(**chunk, truncation=True, max_length=limit)["input_ids"]
        # A tokenizer without special tokens makes nothing of an empty text.
        found.ids.extend(row or [padding_of(tokenizer)["pad_id"]] for row in cut)
    return found


def _save(
    folder: Path,
    split: str,
    names: tuple[str, str],
    rows: Sequence[Any],
    kind: type[np.generic] = np.int32,
) -> None:
    """Write ``rows`` end to end, and where each of them begins."""
    ends = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    flat = np.concatenate([np.asarray(row, kind) for row in rows])
    for name, array in zip(names, (flat, ends), strict=True):
        save(array_path(folder, split, name), array)
