"""Texts: tokenized once with the model's own tokenizer, cut, and laid end to end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_tune.errors import DataError, ModelError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data.arrays import array_path
from sft_tune.trial.data.cache import save
from sft_tune.trial.data.examples import Examples, listed, reason
from sft_tune.trial.data.pretrained import contents_identity, read_settings, transformers_folder

_CHUNK = 1000
_TEXT_COLUMNS = ("text_column", "text_pair_column")
# Tokenizers that state no limit state this or more.
_NO_LIMIT = 10**9
# Models whose positions begin after the padding's id: two of them are not for tokens.
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl"})


class Pieces(NamedTuple):
    """Some texts, tokenized: ids and types after the cut, and the lengths before it."""

    ids: list[list[int]]
    types: list[list[int]]
    lengths: list[int]


@dataclass(frozen=True)
class TextEncoder:
    """Writes texts as token arrays.

    Attributes:
        folder: where the model's tokenizer lies.
        max_length: the study file's limit, in tokens, special ones included.
    """

    folder: Path
    max_length: int

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the arrays, besides the texts."""
        return {
            "kind": "text",
            "tokenizer": contents_identity(self.folder),
            "max_length": self.max_length,
            "tokenizers": version("tokenizers"),
            "transformers": version("transformers"),
        }

    def write(
        self, examples: Examples, rows: NDArray[np.int64], folder: Path, split: str
    ) -> dict[str, Any]:
        """Tokenize the texts ``rows`` to arrays of ``split``; return facts.

        Raises:
            DataError: for a text that is none, or where all are missing.
            ModelError: where the model has no tokenizer that can be loaded.
        """
        sides = sides_of(examples)
        texts, missing = texts_of(sides[0], rows, split)
        seconds: list[str] | None = None
        if len(sides) == 2:
            seconds, more = texts_of(sides[1], rows, split)
            missing += more
        tokenizer = load_tokenizer(self.folder)
        limit, source = token_limit(self.folder, tokenizer, self.max_length)
        padding = padding_of(tokenizer)
        ids: list[NDArray[np.int32]] = []
        types: list[NDArray[np.uint8]] = []
        kept: list[int] = []
        lengths: list[int] = []
        for pieces in _tokenized(tokenizer, texts, seconds, limit):
            # A tokenizer without special tokens makes nothing of an empty text.
            filled = [row or [padding["pad_id"]] for row in pieces.ids]
            kept += [len(row) for row in filled]
            ids.append(np.concatenate([np.asarray(row, np.int32) for row in filled]))
            types.append(np.concatenate([np.asarray(row or [0], np.uint8) for row in pieces.types]))
            lengths += pieces.lengths
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(kept, out=offsets[1:])
        save(array_path(folder, split, "tokens"), np.concatenate(ids))
        save(array_path(folder, split, "offsets"), offsets)
        all_types = np.concatenate(types)
        if all_types.any() and "token_type_ids" in tokenizer.model_input_names:
            save(array_path(folder, split, "types"), all_types)
        facts = length_facts(np.array(lengths), limit)
        return {
            "kind": "text",
            **padding,
            "tokens": {**facts, "limit_from": source, "missing_texts": missing},
        }


def text_encoder(data: DataSpec, model: ModelSpec) -> TextEncoder:
    """Return the encoder for the tokenizer of ``model``.

    Raises:
        ModelError: where the model is none of transformers, or its files are not to be had.
    """
    folder = transformers_folder(model, "texts need a model with a tokenizer")
    return TextEncoder(folder, data.max_length)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in ``folder``; no code from there is run.

    Raises:
        ModelError: where there is none, or it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded: {reason(error)}. A model for texts needs "
            "its tokenizer's files (tokenizer.json, tokenizer_config.json) beside it."
        ) from error


def token_limit(folder: Path, tokenizer: Any, max_length: int) -> tuple[int, str]:
    """Return how many tokens a text may have, and who says so.

    The model's own maximum is its tokenizer's, else the number of positions it was trained with.
    """
    settings = read_settings(folder / "config.json")
    own = tokenizer.model_max_length
    if own is None or own >= _NO_LIMIT:
        own = settings.get("max_position_embeddings") or settings.get("n_positions") or _NO_LIMIT
        if settings.get("model_type") in _OFFSET_POSITIONS:
            own -= (settings.get("pad_token_id") or 0) + 1
    return (max_length, "data.max_length") if max_length <= own else (int(own), "the model")


def check_texts(
    examples: Examples, rows: NDArray[np.int64], where: str, settings: Iterable[str]
) -> None:
    """Check that none of the texts ``rows`` (of pairs: neither) is missing, empty or blank.

    Args:
        examples: a split.
        rows: those that are used.
        where: what the split is called in messages.
        settings: those of `data` that name the columns of the texts.

    Raises:
        DataError: with the places.
    """
    for side, setting in zip(sides_of(examples), settings, strict=False):
        check_filled(side.inputs, examples, rows, where, setting)


def sides_of(examples: Examples) -> list[Examples]:
    """Return ``examples`` of pairs of texts as those of the first and those of the second."""
    inputs = examples.inputs
    if not (len(inputs) and isinstance(inputs[0], tuple)):
        return [examples]
    return [replace(examples, inputs=list(side)) for side in zip(*inputs, strict=True)]


def check_filled(
    texts: Sequence[Any], examples: Examples, rows: NDArray[np.int64], where: str, setting: str
) -> None:
    """Check that none of ``texts``, which stand in ``rows`` of ``examples``, is empty or blank.

    Raises:
        DataError: with the places.
    """
    empty = [i for i in rows.tolist() if _is_blank(texts[i])]
    if empty:
        remedy = "Fill them in, or remove these examples."
        if len(empty) == len(rows):
            remedy = f"Name the right data.{setting}."
        places = listed((examples.place(i) for i in empty), 5)
        what = setting.removesuffix("_column") if setting not in _TEXT_COLUMNS else "text"
        raise DataError(
            f"{where}: {len(empty)} of {len(rows)} {what}s are empty, at {places}. {remedy}"
        )


def _is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and value != value)


def texts_of(
    examples: Examples, rows: NDArray[np.int64], split: str, setting: str = "text_column"
) -> tuple[list[str], int]:
    """Return the texts of ``rows``, a missing one as an empty one, and how many are missing."""
    texts: list[str] = []
    missing = 0
    for i in rows.tolist():
        value = examples.inputs[i]
        if isinstance(value, bool | int | float) and value == value:
            value = str(value)
        if value is None or value != value:
            missing += 1
            value = ""
        if not isinstance(value, str):
            raise DataError(
                f"the text at {examples.place(i)} is a {type(value).__name__} "
                f"({str(value)[:60]!r}), not a string. Name the right data.{setting}."
            )
        texts.append(value)
    if not any(text.strip() for text in texts):
        raise DataError(
            f"all {len(texts)} texts of the {split} split are empty or missing (the first at "
            f"{examples.place(int(rows[0]))}). Name the right data.{setting}."
        )
    return texts, missing


def _tokenized(
    tokenizer: Any, texts: list[str], seconds: list[str] | None, limit: int
) -> Iterator[Pieces]:
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        pair = None if seconds is None else seconds[start : start + _CHUNK]
        # Of a pair the longer text is cut, and what was cut is not given back.
        overflow = tokenizer.is_fast and pair is None
        # The fast ones give what was cut as further pieces; only so the cut share is exact.
        pieces = tokenizer(
            chunk,
            pair,
            truncation=True,
            max_length=limit,
            return_attention_mask=False,
            return_overflowing_tokens=overflow,
            return_token_type_ids=True,
        )
        ids, types = pieces["input_ids"], pieces["token_type_ids"]
        if overflow:
            owners = np.array(pieces["overflow_to_sample_mapping"])
            special = tokenizer.num_special_tokens_to_add()
            inner = np.array([len(row) for row in ids]) - special
            lengths = np.bincount(owners, inner, minlength=len(chunk)).astype(int) + special
            first = np.flatnonzero(np.diff(owners, prepend=-1))
            yield Pieces([ids[i] for i in first], [types[i] for i in first], lengths.tolist())
        else:
            whole = tokenizer(chunk, pair, truncation=False, verbose=False)["input_ids"]
            yield Pieces(ids, types, [len(row) for row in whole])


def padding_of(tokenizer: Any) -> dict[str, Any]:
    """Return how the model wants texts padded; its end of text stands in for a missing pad."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return {
        "pad_id": next(int(i) for i in ids if i is not None),
        "pad_type": int(tokenizer.pad_token_type_id or 0),
        "pad_left": tokenizer.padding_side == "left",
    }


def length_facts(lengths: NDArray[np.int64], limit: int) -> dict[str, Any]:
    """Return the facts about lengths in tokens, before the cut."""
    return {
        "median": float(np.median(lengths)),
        "p95": round(float(np.percentile(lengths, 95)), 1),
        "max": int(lengths.max()),
        "limit": limit,
        "share_cut": float(np.mean(lengths > limit)),
    }
