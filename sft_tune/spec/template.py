"""Study files to start from: a commented file with a recommended space for a task and a model."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from sft_tune.spec.guess import Guess
from sft_tune.spec.recipes import RECIPES, family_of
from sft_tune.spec.tasks import TASKS, Task
from sft_tune.spec.yaml12 import yaml_scalar

# Signs, which mean something else in a mirror.
_NO_MIRROR = re.compile(r"digits|mnist|svhn|usps|gtsrb|omniglot", re.IGNORECASE)
_AUGMENT = "augment: flip         # wrong for images that a mirror changes, like digits: then none"
_NO_AUGMENT = "augment: none         # a flip would make other signs of these"

_AUDIO_DATA = """\
  max_seconds: 10       # longer sounds are cut
"""
_WRITER_DATA = """\
{columns}  max_length: 512       # longer examples are cut to so many tokens
  # packing: true       # several examples in a row: faster where most are short
"""
_TRANSLATION_DATA = """\
{columns}  # source_prefix: "translate English to German: "  # what T5's models are told before each
  max_length: 256       # longer sources are cut to so many tokens
  max_target_length: 128
"""
_IMAGE_DATA = """\
  # image_size: 224     # default: the images' own size, or the model's where they differ
"""
_TEXT_DATA = """\
  text_column: {text_column}
  max_length: 256       # longer texts are cut to so many tokens
"""
_WORDS_DATA = """\
  tokens_column: {tokens_column}
  tags_column: {tags_column} # O, B-PER, I-PER, ...: one a word
  max_length: 256       # longer texts are cut to so many tokens
"""
_MASK_DATA = """\
  # The source has images/a.jpg and masks/a.png, of the same size: a PNG of class indices or with
  # a palette; in train/ and validation/ where there are splits.
  ignore_index: 255     # pixels that do not count
  # classes: [background, thing]  # names of the indices; default: the numbers
"""
_BOX_DATA = """\
  # The source has annotations in COCO's format: train/any.json beside its images (and validation/,
  # test/), or annotations/instances_train.json; or tables, of the columns image, boxes and labels.
  # box_format: xywh    # in tables; default: xyxy (left, top, right, bottom)
  # classes: [cat, dog] # boxes of other classes are left out; default: all
  # image_size: 480     # the shorter side that the detector sees; default: the detector's (800)
"""
_FILE = """\
# A study of sft_tune: what to fine-tune, on what, what to search, and for how long.
# The README lists every key; `sft-tune schema` gives a schema to editors that complete YAML.
#
#   sft-tune check THIS_FILE     looks at data and model, and estimates the time
#   sft-tune start THIS_FILE     runs the study; again, to go on after a stop

name: {name}
task: {task}

data:
  source: {source}
{columns}  # Train and validation: those of the source, else a part of it is kept for validation.
  validation_fraction: {fraction}

model:
  name: {model}
{weights}
# {why}
# What is not searched below, and the default configuration (trial 0) that tuning must beat.
training:
{training}
# What is searched: a list of choices, or a range (log: true for what varies by factors).
space:
{space}
objective:
  metric: {metric}

sampler:
  name: tpe             # learns from the trials so far; random and grid do not

pruner:
  name: asha            # stops trials that are behind; none runs all to their end

budget:
  trials: 30            # in total: raise it later and start again to go on
  # hours: 8
"""


def study_template(
    task: Task, model: str, source: str, name: str | None = None, found: Guess | None = None
) -> str:
    """Return a commented study file that fine-tunes ``model`` on ``source``.

    Args:
        task: the task; it decides the data's settings.
        model: as in the file: ``torchvision:NAME``, ``timm:NAME``,
            ``transformers:ID-or-path``, ``builtin:convnet``; it decides the recommended space.
        source: as in the file; a relative path is relative to where the file will be saved.
        name: name of the study. Default: made of the source's and the model's.
        found: the settings of its columns, and what to say of them. Default: the usual ones.

    Raises:
        UserError: the model is of no known kind, or does not fit the task.
    """
    recipe = RECIPES[family_of(task, model)]
    augment = _NO_AUGMENT if _NO_MIRROR.search(source) else _AUGMENT
    builtin = model.startswith("builtin:")
    weights = "  weights: none         # it has no published weights; or give a file of your own\n"
    lora = "  lora_rank: 16         # needs `sft_tune[lora]`; leave it out to train all weights\n"
    return _FILE.format(
        name=yaml_scalar(name or _name(source, model)),
        task=task,
        source=yaml_scalar(source),
        columns=_columns(task, found or Guess()),
        fraction=0.2,
        model=yaml_scalar(model),
        weights=weights if builtin else lora if task == "causal-lm" else "",
        why=recipe.why,
        training=recipe.training.format(augment=augment),
        space=recipe.space,
        metric=_metric(task),
    )


def _columns(task: Task, found: Guess) -> str:
    """Return the lines of the section `data` that name what is read."""
    settings = {key: yaml_scalar(value) for key, value in found.settings.items() if _text(value)}
    notes = "".join(_comment(note) for note in found.notes)
    if TASKS[task].input == "words":
        tokens, tags = (settings.get(k) for k in ("tokens_column", "tags_column"))
        words = _WORDS_DATA.format(tokens_column=tokens or "tokens", tags_column=tags or "ner_tags")
        return notes + words
    if TASKS[task].writes:
        named = {key: settings.get(key) for key in TASKS[task].columns}
        lines = "".join(f"  {key}: {value}\n" for key, value in named.items() if value)
        if task == "seq2seq":
            lines = lines or "  source_column: source\n  target_column: target\n"
            return notes + _TRANSLATION_DATA.format(columns=lines)
        lines = lines or "  prompt_column: prompt\n  completion_column: completion\n"
        return notes + _WRITER_DATA.format(columns=lines)
    if TASKS[task].input == "image":
        column = settings.get("image_column")
        if TASKS[task].boxes:
            return notes + (f"  image_column: {column}\n" if column else "") + _BOX_DATA
        lines = (f"  image_column: {column}\n" if column else "") + _IMAGE_DATA
        if TASKS[task].masks:
            return notes + lines + _MASK_DATA
    elif TASKS[task].input == "audio":
        column = settings.get("audio_column")
        lines = (f"  audio_column: {column}\n" if column else "") + _AUDIO_DATA
    else:
        lines = _TEXT_DATA.format(text_column=settings.get("text_column", "text"))
    if "label_column" in settings or not TASKS[task].classes:
        label = settings.get("label_column", "label")
        lines += f"  label_column: {label}" + (
            "\n" if TASKS[task].classes else "   # holds numbers\n"
        )
    if found.settings.get("multi_label"):
        lines += "  multi_label: true     # an example has any number of labels\n"
    if marks := found.settings.get("label_columns"):
        names = "".join(f"    - {yaml_scalar(mark)}\n" for mark in marks)
        lines += f"  label_columns:\n{names}"
    return notes + lines


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _comment(note: str) -> str:
    """Return ``note`` as lines of a comment; a column's name may hold a line's end."""
    lines = textwrap.wrap(" ".join(note.split()), 94)
    return "".join(f"  # {line}\n" for line in lines)


def _metric(task: Task) -> str:
    if task.endswith("classification") and TASKS[task].classes:
        return "accuracy      # f1_macro where some classes are rare"
    first, *others = TASKS[task].metrics
    return f"{first:<13} # or {', '.join(others)}"


def _name(source: str, model: str) -> str:
    parts = [re.split(r"[/\\:]", text)[-1] for text in (_stem(source), model.rstrip("/\\"))]
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part.lower() for part in parts))
    return slug.strip("-._")[:120].strip("-._") or "study"


def _stem(source: str) -> str:
    """Return ``source`` without a table's suffix; a file that is called train, by its folder."""
    path = re.sub(r"\.(csv|tsv|jsonl?|parquet)$", "", source.rstrip("/\\"), flags=re.IGNORECASE)
    folder = re.fullmatch(r"(.*[^./\\])[/\\]+train", path, re.IGNORECASE)
    return folder[1] if folder else path
