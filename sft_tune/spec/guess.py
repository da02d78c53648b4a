"""Which task a table is for, and which of its columns are what: only where it is plain."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft_tune.spec.tasks import TASKS, Input, Task

Table = Mapping[str, Sequence[Any]]

_TEXTS = (
    "text review sentence content body comment document message tweet abstract question utterance"
).split()
_LABELS = (
    "label labels target class category sentiment stars rating score topic intent y output"
).split()
_PROMPTS = "prompt instruction question input query source text".split()
_COMPLETIONS = "completion response answer output target summary".split()
_TAGS = ("ner_tags", "tags", "labels", "pos_tags", "chunk_tags")
_TAG = re.compile(r"O|[BIES]-.+")
_IMAGE = re.compile(r".+\.(png|jpe?g|bmp|gif|webp|tiff?)", re.IGNORECASE)
_AUDIO = re.compile(r".+\.(aiff?|au|flac|mp3|og[ag]|opus|wav)", re.IGNORECASE)
# So many words of a value make it a text, not the name of a class.
_WORDS_OF_A_TEXT = 3


@dataclass(frozen=True)
class Guess:
    """What the first rows of a table tell.

    Attributes:
        task: the task that it is plainly for; None where it is not plain.
        settings: those of `data` to write, by their names; defaults are left out.
        notes: what was chosen and why, or which columns there are; lines of a comment.
    """

    task: Task | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def wrong_separator(path: Path, header: Sequence[str], separator: str) -> str:
    """Return why the first line of a .csv or .tsv, read as ``header``, is none; empty: it is one.

    Args:
        path: of the file.
        header: what lies between the separators of the line.
        separator: the one that the ending says.
    """
    if len(header) != 1 or not any(mark in header[0] for mark in ";\t|"):
        return ""
    return (
        f"{path} does not look separated by {separator!r}: its header is {header[0]!r}. "
        "Write it with commas (.csv) or tabs (.tsv)."
    )


def guess(table: Table, task: Task | None = None) -> Guess:
    """Return what the first rows of a table tell of its task and columns.

    Args:
        table: the values of each column, None where there is none.
        task: the task, where it is given: only its columns are looked for.
    """
    if task is not None and TASKS[task].boxes:
        return Guess()  # its columns have their usual names, or stand in COCO's annotations
    table = {name: [v for v in values if v is not None] for name, values in table.items()}
    if not any(table.values()):
        return Guess(notes=_unclear(table, "the file's rows") if table else ())
    if task is not None and TASKS[task].writes:
        return _written(table, task)
    if task is None and (_chats(table) or {"prompt", "completion"} <= set(table)):
        return _written(table, "causal-lm")
    words = task is not None and TASKS[task].input == "words"
    if words or (task is None and _tokens(table)):
        return _tagged(table)
    if task:
        return _labelled(table, task, TASKS[task].input)
    files = [kind for kind in _FILES if _files(table, kind)]
    return _labelled(table, task, files[0] if files and not _texts(table) else "text")


def _labelled(table: Table, task: Task | None, kind: Input) -> Guess:
    texts = kind == "text"
    key = f"{kind}_column"
    found = _texts(table) if texts else _files(table, kind)
    chosen = _one(found, _TEXTS if texts else (), kind, table)
    notes: list[str] = []
    settings: dict[str, Any] = {}
    if chosen is None:
        notes += _unclear(table, f"data.{key}")
    elif chosen != kind:
        settings[key] = chosen
        why = "is the one that holds texts" if texts else f"holds the {kind} files"
        notes.append(f"{key}: `{chosen}` {why}; there is no column `{key.split('_')[0]}`.")
    rest = [name for name in table if name != chosen and name not in found]
    marks = [name for name in rest if _is_mark(table[name])]
    classes = task is None or TASKS[task].classes
    if texts and classes and "label" not in table and len(marks) > 1 and marks == rest:
        settings |= {"multi_label": True, "label_columns": marks}
        notes.append("label_columns: all other columns hold 0 and 1 only, one label each.")
        return Guess(task or "text-classification", settings, tuple(notes))
    label = _one([name for name in rest if _is_label(table[name])], _LABELS, "label", table)
    if label is None:
        return Guess(_task(kind, False), settings, (*notes, *_unclear(table, "data.label_column")))
    if label != "label":
        settings["label_column"] = label
        notes.append(f"label_column: `{label}` it seems; there is no column `label`.")
    values = table[label]
    if texts and classes and _several(values):
        settings["multi_label"] = True
        notes.append(f"multi_label: `{label}` holds any number of labels an example.")
    numbers = task is None and kind != "audio" and _is_measure(values)
    if numbers:
        notes.append(f"task: `{label}` holds numbers with fractions, so they are predicted.")
    return Guess(_task(kind, numbers), settings, tuple(notes))


def _task(kind: Input, numbers: bool) -> Task:
    if kind == "audio":
        return "audio-classification"
    if kind == "image":
        return "image-regression" if numbers else "image-classification"
    return "text-regression" if numbers else "text-classification"


def _written(table: Table, task: Task) -> Guess:
    """Return which columns hold what a model is given, and what it is to write."""
    if task == "causal-lm" and (chats := _chats(table)):
        note = f"`{chats[0]}` holds chats: only what the assistant says is learnt."
        return Guess(task, {"messages_column": chats[0]}, (note,))
    settings: dict[str, Any] = {}
    given, wanted = TASKS[task].columns[:2]
    for key, usual in ((given, _PROMPTS), (wanted, _COMPLETIONS)):
        named = [name for name in usual if name in table]
        if not named:
            return Guess(task, {}, _unclear(table, f"data.{key}"))
        settings[key] = named[0]
    return Guess(task, settings)


def _chats(table: Table) -> list[str]:
    """Return the columns of lists of messages."""

    def is_message(item: Any) -> bool:
        return isinstance(item, Mapping) and {"role", "content"} <= set(item)

    lists = [name for name, values in table.items() if _all(values, _is_list)]
    return [name for name in lists if _all_items(table[name], is_message)]


def _tagged(table: Table) -> Guess:
    pair = _tokens(table)
    if pair is None:
        return Guess("token-classification", {}, _unclear(table, "the tokens and their tags"))
    settings = {"tokens_column": pair[0], "tags_column": pair[1]}
    note = f"`{pair[0]}` holds lists of words, `{pair[1]}` a tag for each."
    return Guess("token-classification", settings, (note,))


def _tokens(table: Table) -> tuple[str, str] | None:
    """Return the columns of words and of tags, where there is one of each, of equal lengths."""
    lists = [name for name, values in table.items() if _all(values, _is_list)]
    tags = [name for name in lists if _all_items(table[name], _is_tag)]
    chosen = next((name for name in _TAGS if name in tags), tags[0] if len(tags) == 1 else None)
    if chosen is None:
        return None
    lengths = [len(row) for row in table[chosen]]
    words = [
        name
        for name in lists
        if name not in tags
        and _all_items(table[name], lambda item: isinstance(item, str))
        and [len(row) for row in table[name]] == lengths
    ]
    return (words[0], chosen) if len(words) == 1 else None


def _one(found: Sequence[str], usual: Sequence[str], default: str, table: Table) -> str | None:
    """Return the default where the table has it, else the only one found, else a usual name."""
    if default in table:
        return default
    if len(found) == 1:
        return found[0]
    named = [name for name in found if name.lower() in usual]
    return named[0] if len(named) == 1 else None


def _unclear(table: Table, what: str) -> tuple[str, ...]:
    names = ", ".join(f"`{name}`" for name in list(table)[:20])
    more = f" and {len(table) - 20} more" if len(table) > 20 else ""
    return (f"Set {what}: it is not clear from the columns, which are {names}{more}.",)


def _texts(table: Table) -> list[str]:
    return [name for name, values in table.items() if _is_text(values)]


def _files(table: Table, kind: Input) -> list[str]:
    return [name for name, values in table.items() if _all(values, _FILES[kind])]


def _is_text(values: Sequence[Any]) -> bool:
    if not _all(values, lambda value: isinstance(value, str) and not _is_file(value)):
        return False
    words = sum(len(value.split()) for value in values) / len(values)
    return words >= _WORDS_OF_A_TEXT and len(set(values)) > len(values) / 2


def _is_image(value: Any) -> bool:
    if isinstance(value, Mapping):  # how Hugging Face datasets write an image
        return bool({"bytes", "path"} & set(value))
    return isinstance(value, bytes) or (isinstance(value, str) and bool(_IMAGE.fullmatch(value)))


def _is_sound(value: Any) -> bool:
    return isinstance(value, str) and bool(_AUDIO.fullmatch(value))


def _is_file(value: Any) -> bool:
    return _is_image(value) or _is_sound(value)


_FILES: dict[Input, Callable[[Any], bool]] = {"image": _is_image, "audio": _is_sound}


def _is_label(values: Sequence[Any]) -> bool:
    """Tell whether values may be labels: not numbers or names of single rows."""
    if not values or _is_text(values):
        return False
    if _several(values) or _is_measure(values):
        return True
    hashable = _all(values, lambda value: isinstance(value, str | int | float))
    return hashable and (len(set(values)) < len(values) or len(values) < 3)


def _several(values: Sequence[Any]) -> bool:
    if _all(values, _is_list):
        return _all_items(values, lambda item: isinstance(item, str))
    return _all(values, lambda value: isinstance(value, str)) and any("|" in v for v in values)


def _is_measure(values: Sequence[Any]) -> bool:
    if not _all(values, lambda value: isinstance(value, int | float) and not _is_bool(value)):
        return False
    return any(float(value) % 1 for value in values)


def _is_mark(values: Sequence[Any]) -> bool:
    return _all(values, lambda value: isinstance(value, int | float) and value in (0, 1))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_tag(item: Any) -> bool:
    return isinstance(item, str) and bool(_TAG.fullmatch(item))


def _all(values: Sequence[Any], test: Any) -> bool:
    return bool(values) and all(test(value) for value in values)


def _all_items(values: Sequence[Any], test: Any) -> bool:
    return any(len(row) for row in values) and all(test(item) for row in values for item in row)
