"""Chats: written out by the tokenizer's chat template, what the assistant says marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sft_tune.errors import DataError, ModelError
from sft_tune.trial.data.examples import Examples, reason

ASSISTANT = "assistant"
# Templates may say themselves what the assistant generates.
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")

Message = dict[str, Any]
Marked = tuple[list[int], list[bool]]


def checked_chat(examples: Examples, i: int, where: str) -> list[Message]:
    """Return the messages of example ``i``.

    Raises:
        DataError: where they are not messages, or the assistant says nothing.
    """
    chat, place = examples.labels[i], examples.place(i)
    if not isinstance(chat, list | tuple | np.ndarray) or not len(chat):
        raise DataError(
            f"{where}: a chat must be a list of messages (got {str(chat)[:60]!r} at {place}). "
            'Write [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}] and '
            "name the right data.messages_column; CSV cannot hold lists."
        )
    for number, message in enumerate(chat, start=1):
        said = message.get("content") if isinstance(message, Mapping) else None
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(said, str) or not isinstance(role, str) or not role.strip():
            raise DataError(
                f"{where}: message {number} at {place} must have `role` and `content`, both texts "
                f"(got {str(message)[:60]!r}). Mend it, or remove the chat."
            )
        if role == ASSISTANT and not said.strip():
            raise DataError(
                f"{where}: message {number} at {place} is an empty completion: the assistant says "
                "nothing. Mend it, or remove the chat."
            )
    if all(message["role"] != ASSISTANT for message in chat):
        raise DataError(
            f"{where}: in the chat at {place} no message has the role `{ASSISTANT}`, so there is "
            "nothing to learn. Mend it, or remove the chat."
        )
    return [dict(message) for message in chat]


def check_template(tokenizer: Any, folder: Any) -> None:
    """Check that ``tokenizer`` can write chats.

    Raises:
        ModelError: where it has no chat template, or does not tell where a token stands.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer in {folder} has no chat template, which data.messages_column needs; "
            "use a model that was made for chats, put a chat_template.jinja into the folder, or "
            "give data.prompt_column and data.completion_column"
        )
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer in {folder} does not tell where a token stands; "
            "give a model with a fast tokenizer (tokenizer.json)"
        )


def tokenized_chat(tokenizer: Any, chat: Sequence[Message], place: str) -> Marked:
    """Return the tokens of ``chat``, and of each whether the assistant says it.

    What ends its turn is its own, too: the model must learn to stop. Where the template marks
    it (``{% generation %}``), that is taken; else it is what each of its messages adds.

    Raises:
        DataError: where the template does not take the chat.
    """
    try:
        if _MARKED.search(tokenizer.chat_template):
            found = tokenizer.apply_chat_template(
                list(chat), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            return list(found["input_ids"]), [bool(mark) for mark in found["assistant_masks"]]
        text, spans = _spans(tokenizer, chat, place)
    except DataError:
        raise
    # What a template raises is about the chat: two turns of the same role, an unknown one.
    except Exception as error:
        raise DataError(
            f"the chat template does not take the chat at {place}: {reason(error)}. Mend the chat."
        ) from error
    pieces = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    marks = [
        any(begin <= a and b <= end for begin, end in spans) for a, b in pieces["offset_mapping"]
    ]
    return list(pieces["input_ids"]), marks


def _spans(
    tokenizer: Any, chat: Sequence[Message], place: str
) -> tuple[str, list[tuple[int, int]]]:
    """Return ``chat`` written out, and where in it the assistant speaks."""

    def written(count: int, prompt: bool) -> str:
        text: str = tokenizer.apply_chat_template(
            list(chat[:count]), tokenize=False, add_generation_prompt=prompt
        )
        return text

    whole = written(len(chat), False)
    spans = []
    for i, message in enumerate(chat):
        if message["role"] != ASSISTANT:
            continue
        before, after = written(i, True) if i else "", written(i + 1, False)
        if not (whole.startswith(after) and after.startswith(before)):
            raise DataError(
                f"the chat template writes the chat at {place} otherwise when it goes on, so what "
                f"the assistant says in message {i + 1} cannot be told. Mark it in the template "
                "by {% generation %} and {% endgeneration %}."
            )
        spans.append((len(before), len(after)))
    return whole, spans
