"""What a language model is given and what it is to write: tokens, and which of them are learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_tune.errors import DataError, ModelError
from sft_tune.spec.data import DataSpec
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data.arrays import UNTAGGED, array_path
from sft_tune.trial.data.cache import save
from sft_tune.trial.data.chats import check_template, checked_chat, tokenized_chat
from sft_tune.trial.data.examples import Examples, listed
from sft_tune.trial.data.packing import packed
from sft_tune.trial.data.parts import Part
from sft_tune.trial.data.target_kinds import Found, Labels, Stats
from sft_tune.trial.data.text import (
    check_filled,
    length_facts,
    load_tokenizer,
    padding_of,
    text_encoder,
    texts_of,
    token_limit,
)

_CHUNK = 1000


@dataclass(frozen=True)
class CompletionTargets:
    """A text or a chat an example; it becomes tokens with the inputs, so nothing is stored here.

    Attributes:
        column: the setting of `data` that names the column of texts.
    """

    column: str = "completion_column"

    def read(self, examples: Examples, data: DataSpec, where: str, labels: Labels | None) -> Found:
        """Return all examples; one that has nothing to learn is an error."""
        rows = np.arange(len(examples.labels))
        zeros = np.zeros(len(rows), dtype=np.int64)
        targets: list[Any]
        if data.messages_column is not None:
            targets = [checked_chat(examples, i, where) for i in rows.tolist()]
            setting = "messages_column"
        else:
            targets = [_text(value) for value in examples.labels]
            setting = self.column
            check_filled(targets, examples, rows, where, setting)
            for i, target in enumerate(targets):
                if not isinstance(target, str):
                    what = f"a {setting.removesuffix('_column')} must be a text"
                    raise DataError(
                        f"{where}: {what}, not a {type(target).__name__} "
                        f"({str(target)[:60]!r} at {examples.place(i)}). Name the right "
                        f"data.{setting}."
                    )
        part = Part(Examples(examples.inputs, targets, examples.place), rows, zeros, zeros)
        self.check(part, (), where, f"Mend the source or data.{setting}.")
        return Found(part, ())

    def check(self, part: Part, labels: Labels, where: str, remedy: str) -> None:
        """Check that there are examples."""
        if not len(part.rows):
            raise DataError(f"{where} has no examples. {remedy}")

    def check_train(self, part: Part, labels: Labels, where: str) -> None:
        """Check nothing more: one example is enough to learn from."""

    def counts(self, part: Part, labels: Labels) -> dict[str, int]:
        """Return nothing: texts are not counted."""
        return {}

    def finish(
        self, parts: Mapping[str, Part], stats: Stats | None
    ) -> tuple[dict[str, Part], Stats]:
        """Return ``parts`` as they are."""
        return dict(parts), {}


class Row(NamedTuple):
    """An example as tokens: those read, the one after each or `UNTAGGED`, and the whole length."""

    read: list[int]
    learnt: list[int]
    length: int


@dataclass(frozen=True)
class CompletionEncoder:
    """Writes prompts with their completions, or chats, as token arrays.

    Attributes:
        folder: where the model's tokenizer lies.
        max_length: the study file's limit, in tokens.
        text_identity: of the tokenizer and the limit.
        chats: whether examples are chats.
        packing: whether a row of train holds several examples.
    """

    folder: Path
    max_length: int
    text_identity: dict[str, Any]
    chats: bool
    packing: bool

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the arrays, besides the texts."""
        form = {"kind": "completions", "chats": self.chats, "packing": self.packing}
        return {**self.text_identity, **form}

    def write(
        self, examples: Examples, rows: NDArray[np.int64], folder: Path, split: str
    ) -> dict[str, Any]:
        """Tokenize the examples ``rows`` to arrays of ``split``; return facts.

        A prompt that is too long loses its beginning, a completion its end, a chat its end.

        Raises:
            DataError: for a prompt that is no text, or where nothing is left to learn.
            ModelError: where the tokenizer cannot be loaded, or lacks what is needed.
        """
        tokenizer = load_tokenizer(self.folder)
        limit, source = token_limit(self.folder, tokenizer, self.max_length)
        if self.chats:
            check_template(tokenizer, self.folder)
            found = list(_chats(tokenizer, examples, rows, limit))
        else:
            found = list(_completions(tokenizer, self.folder, examples, rows, limit, split))
        _check_learnt(found, examples, rows, limit, split)
        groups = [[i] for i in range(len(found))]
        if self.packing and split == "train":
            groups = packed([len(row.read) for row in found], limit)
            segments = [
                np.full(len(found[i].read), place, np.int32)
                for group in groups
                for place, i in enumerate(group, start=1)
            ]
            save(array_path(folder, split, "segments"), np.concatenate(segments))
        order = [i for group in groups for i in group]
        ends = np.cumsum([0, *(sum(len(found[i].read) for i in group) for group in groups)])
        for name, kept in (("tokens", 0), ("tags", 1)):
            flat = np.concatenate([np.asarray(found[i][kept], np.int32) for i in order])
            save(array_path(folder, split, name), flat)
        save(array_path(folder, split, "offsets"), ends.astype(np.int64))
        save(array_path(folder, split, "targets"), np.zeros(len(groups), dtype=np.int64))
        facts = length_facts(np.array([row.length for row in found]), limit)
        learnt = sum(token != UNTAGGED for row in found for token in row.learnt)
        return {
            "kind": "text",
            **padding_of(tokenizer),
            # Behind the text padding is never seen; before it, it would move the positions.
            "pad_left": False,
            "tokens": {
                **facts,
                "limit_from": source,
                "missing_texts": 0,
                "learnt": learnt,
                "rows": len(groups),
            },
        }


def completion_encoder(data: DataSpec, model: ModelSpec) -> CompletionEncoder:
    """Return the encoder for the tokenizer of ``model``.

    Raises:
        ModelError: where the model is none of transformers, or its files are not to be had.
    """
    plain = text_encoder(data, model)
    chats = data.messages_column is not None
    return CompletionEncoder(plain.folder, plain.max_length, plain.identity, chats, data.packing)


def _text(value: Any) -> Any:
    """Return a number as the text that it is in a table; anything else as it is."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return str(value) if number else value


def _completions(
    tokenizer: Any,
    folder: Path,
    examples: Examples,
    rows: NDArray[np.int64],
    limit: int,
    split: str,
) -> Iterator[Row]:
    """Yield each prompt followed by its completion and the end of text."""
    end = tokenizer.eos_token_id
    if end is None:
        raise ModelError(
            f"the tokenizer in {folder} has no end-of-text token, so a model cannot learn where "
            "to stop; set eos_token in its tokenizer_config.json"
        )
    prompts, _ = texts_of(examples, rows, split, "prompt_column")
    for start in range(0, len(rows), _CHUNK):
        chunk = rows[start : start + _CHUNK]
        texts = [examples.labels[i] for i in chunk]
        given = tokenizer(prompts[start : start + _CHUNK], verbose=False)["input_ids"]
        wanted = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for before, after in zip(given, wanted, strict=True):
            prompt = before[:-1] if before and before[-1] == end else before
            completion = after if after and after[-1] == end else [*after, end]
            length = len(prompt) + len(completion)
            completion = completion[: limit - 1]
            prompt = _last(prompt, limit - len(completion), tokenizer.bos_token_id)
            learnt = [False] * len(prompt) + [True] * len(completion)
            yield _row([*prompt, *completion], learnt, length)


def _last(prompt: list[int], room: int, first: int | None) -> list[int]:
    """Return the end of ``prompt`` that has ``room``, behind the token that begins all texts."""
    if len(prompt) <= room:
        return prompt
    kept = prompt[:1] if first is not None and prompt[0] == first and room > 1 else []
    return [*kept, *prompt[len(prompt) - room + len(kept) :]]


def _chats(
    tokenizer: Any, examples: Examples, rows: NDArray[np.int64], limit: int
) -> Iterator[Row]:
    for i in rows.tolist():
        ids, learnt = tokenized_chat(tokenizer, examples.labels[i], examples.place(i))
        yield _row(ids[:limit], learnt[:limit], len(ids))


def _row(ids: list[int], learnt: Sequence[bool], length: int) -> Row:
    """Return what is read of ``ids``, all but the last, and what is learnt at each place."""
    after = zip(ids[1:], learnt[1:], strict=True)
    return Row(ids[:-1], [token if mark else UNTAGGED for token, mark in after], length)


def _check_learnt(
    found: Sequence[Row], examples: Examples, rows: NDArray[np.int64], limit: int, split: str
) -> None:
    """Raise DataError where the cut, or the tokenizer, has left nothing to learn of an example."""
    bad = [k for k, row in enumerate(found) if all(token == UNTAGGED for token in row.learnt)]
    if not bad:
        return
    places = listed((examples.place(int(rows[k])) for k in bad), 5)
    if longest := max((found[k].length for k in bad if found[k].length > limit), default=0):
        remedy = f"Raise data.max_length (these have up to {longest} tokens), or shorten them."
    else:
        remedy = "Mend them, or the model's chat template."
    raise DataError(
        f"of {len(bad)} of {len(found)} examples of the {split} split nothing is left to learn in "
        f"{limit} tokens, at {places}. {remedy}"
    )
