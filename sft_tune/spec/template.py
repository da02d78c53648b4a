"""Study files to start from: a commented file with a recommended space for a task and a model."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Any

from sft_tune.errors import UserError
from sft_tune.spec.guess import Guess
from sft_tune.spec.study import Task
from sft_tune.spec.tasks import TASKS
from sft_tune.spec.yaml12 import yaml_scalar

# The libraries' models of these kinds were trained with AdamW and are fine-tuned with it.
_ADAMW_MODELS = ("vit", "swin", "maxvit", "convnext", "deit", "eva", "beit", "mixer", "coatnet")
# Signs, which mean something else in a mirror.
_NO_MIRROR = re.compile(r"digits|mnist|svhn|usps|gtsrb|omniglot", re.IGNORECASE)
_AUGMENT = "augment: flip         # wrong for images that a mirror changes, like digits: then none"
_NO_AUGMENT = "augment: none         # a flip would make other signs of these"


@dataclass(frozen=True)
class Recipe:
    """The recommended settings of a family of models, as text of a study file.

    Attributes:
        why: what the settings follow, one line.
        training: lines of the section `training`.
        space: lines of the section `space`.
    """

    why: str
    training: str
    space: str


RECIPES: dict[str, Recipe] = {
    "convnet": Recipe(
        why="A small network learns fast and far: high rates, many short epochs.",
        training="""\
  optimizer: adamw
  learning_rate: 1e-3
  schedule: cosine
  batch_size: 32
  epochs: 20
  {augment}
""",
        space="""\
  # The setting that matters most, searched over two orders of magnitude.
  learning_rate: {low: 1e-4, high: 1e-2, log: true}
  schedule: [cosine, linear, constant]
  # More epochs are only better when the data is many; each trial is judged on its own schedule.
  epochs: [10, 20, 40]
  batch_size: [16, 32, 64]
  weight_decay: {low: 1e-4, high: 0.1, log: true}
  # Softer targets help where labels are few or noisy.
  label_smoothing: [0.0, 0.1]
""",
    ),
    "cnn": Recipe(
        why="Convolutional networks: SGD with momentum, as they were pretrained.",
        training="""\
  optimizer: sgd
  momentum: 0.9
  learning_rate: 0.01
  schedule: cosine
  weight_decay: 1e-4
  batch_size: 64
  epochs: 6
  {augment}
""",
        space="""\
  # The setting that matters most. For adamw search 1e-5 to 1e-3 instead.
  learning_rate: {low: 1e-3, high: 0.1, log: true}
  schedule: [cosine, exponential]
  # The exponential schedule's factor an epoch, searched only where it is used.
  decay_factor: {low: 0.5, high: 0.95, when: {schedule: exponential}}
  # Each trial is judged on its own schedule, so that long ones are not cut unfairly.
  epochs: [3, 6, 12]
  batch_size: [32, 64, 128]
  weight_decay: {low: 1e-5, high: 1e-2, log: true}
  # The new head starts at random, the backbone does not: it may need a higher rate.
  head_multiplier: {low: 1.0, high: 10.0, log: true}
""",
    ),
    "transformer": Recipe(
        why="Vision transformers and their kin: AdamW with low rates and a warm-up.",
        training="""\
  optimizer: adamw
  learning_rate: 5e-5
  schedule: cosine
  warmup: 0.1
  weight_decay: 0.05
  batch_size: 32
  epochs: 5
  {augment}
""",
        space="""\
  # The setting that matters most; above 1e-3 these models forget what they were pretrained on.
  learning_rate: {low: 5e-6, high: 5e-4, log: true}
  # Without a warm-up the first steps of AdamW can undo the pretraining.
  warmup: {low: 0.0, high: 0.3}
  epochs: [3, 5, 10]
  batch_size: [16, 32, 64]
  weight_decay: {low: 1e-3, high: 0.3, log: true}
  label_smoothing: [0.0, 0.1]
  # The new head starts at random, the backbone does not: it may need a higher rate.
  head_multiplier: {low: 1.0, high: 30.0, log: true}
""",
    ),
    "detector": Recipe(
        why="Detectors: small batches of large images, AdamW with low rates and a warm-up.",
        training="""\
  optimizer: adamw
  learning_rate: 1e-4
  schedule: cosine
  warmup: 0.1
  weight_decay: 1e-4
  clip_norm: 1.0
  batch_size: 8
  epochs: 12
  {augment}
""",
        space="""\
  # The setting that matters most.
  learning_rate: {low: 1e-5, high: 1e-3, log: true}
  epochs: [6, 12, 24]
  weight_decay: {low: 1e-5, high: 1e-2, log: true}
  # The new layers start at random, the rest does not: they may need a higher rate.
  head_multiplier: {low: 1.0, high: 10.0, log: true}
""",
    ),
    "sounds": Recipe(
        why="Audio transformers: AdamW with low rates and a warm-up, small batches of long inputs.",
        training="""\
  optimizer: adamw
  learning_rate: 5e-5
  schedule: linear
  warmup: 0.1
  weight_decay: 0.01
  batch_size: 8
  epochs: 5
  clip_norm: 1.0
""",
        space="""\
  # The setting that matters most.
  learning_rate: {low: 5e-6, high: 5e-4, log: true}
  epochs: [3, 5, 10]
  batch_size: [8, 16, 32]
  # Without a warm-up the first steps of AdamW can undo the pretraining.
  warmup: {low: 0.0, high: 0.3}
  weight_decay: {low: 1e-3, high: 0.1, log: true}
  # The new head starts at random, the backbone does not: it may need a higher rate.
  head_multiplier: {low: 1.0, high: 30.0, log: true}
""",
    ),
    "encoder": Recipe(
        why="Text encoders: the recipe of BERT (Devlin et al. 2018, appendix A.3), widened.",
        training="""\
  optimizer: adamw
  learning_rate: 3e-5
  schedule: linear
  warmup: 0.1
  weight_decay: 0.01
  batch_size: 16
  epochs: 3
  clip_norm: 1.0
""",
        space="""\
  # The setting that matters most. 2e-5 to 5e-5 suit base models; small ones take more.
  learning_rate: {low: 5e-6, high: 3e-4, log: true}
  epochs: [2, 3, 4]
  batch_size: [16, 32]
  # Without a warm-up the first steps of AdamW can undo the pretraining.
  warmup: {low: 0.0, high: 0.2}
  weight_decay: {low: 1e-3, high: 0.3, log: true}
  # On few examples dropout is the cheapest regularization.
  model.dropout: {low: 0.0, high: 0.3}
""",
    ),
    "translator": Recipe(
        why="Encoder-decoders: all weights, at the rates of T5's fine-tuning (Raffel et al. 2020).",
        training="""\
  optimizer: adamw
  learning_rate: 3e-4
  schedule: linear
  warmup: 0.1
  weight_decay: 0.01
  batch_size: 32
  epochs: 3
  clip_norm: 1.0
""",
        space="""\
  # The setting that matters most. 1e-4 to 1e-3 suit T5; models of BART's kind take a tenth.
  learning_rate: {low: 1e-5, high: 1e-3, log: true}
  epochs: [2, 3, 5]
  batch_size: [16, 32, 64]
  warmup: {low: 0.0, high: 0.2}
  label_smoothing: [0.0, 0.1]
""",
    ),
    "writer": Recipe(
        why="Language models: LoRA on all linear layers (Hu et al. 2022; Dettmers et al. 2023).",
        training="""\
  optimizer: adamw
  learning_rate: 2e-4
  schedule: cosine
  warmup: 0.05
  weight_decay: 0.0
  batch_size: 16
  micro_batch: 4        # so many examples at once: the gradient is that of the whole batch
  epochs: 2
  clip_norm: 1.0
  gradient_checkpointing: true
""",
        space="""\
  # The setting that matters most. LoRA takes ten times the rate of training all weights.
  learning_rate: {low: 2e-5, high: 1e-3, log: true}
  # More capacity for what is new; low ranks do for most tasks.
  model.lora_rank: [8, 16, 32]
  epochs: [1, 2, 3]
  batch_size: [8, 16, 32]
  warmup: {low: 0.0, high: 0.1}
""",
    ),
}

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
    recipe = RECIPES[_family(task, model)]
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


def _family(task: Task, model: str) -> str:
    scheme, _, rest = model.partition(":")
    if TASKS[task].input != "image":
        sounds = TASKS[task].input == "audio"
        if scheme == "transformers" and rest:
            if TASKS[task].writes:
                return "translator" if task == "seq2seq" else "writer"
            return "sounds" if sounds else "encoder"
        known = "facebook/wav2vec2-base" if sounds else "google-bert/bert-base-uncased"
        raise UserError(
            f"a model for {task} is transformers:ID-or-path, not {model!r}; "
            f"for example transformers:{known}"
        )
    if TASKS[task].boxes:
        if scheme == "torchvision" and rest:
            return "detector"
        raise UserError(
            f"a model for {task} is torchvision:NAME, not {model!r}; for example "
            "torchvision:fasterrcnn_resnet50_fpn_v2"
        )
    if model == "builtin:convnet" and not TASKS[task].masks:
        return "convnet"
    if scheme in ("torchvision", "timm") and rest:
        return "transformer" if rest.lower().startswith(_ADAMW_MODELS) else "cnn"
    if scheme == "transformers" and rest:
        return "transformer"
    raise UserError(
        f"a model for {task} is torchvision:NAME, timm:NAME, transformers:ID-or-path or "
        f"builtin:convnet, not {model!r}; for example torchvision:resnet18"
    )


def _name(source: str, model: str) -> str:
    parts = [re.split(r"[/\\:]", text)[-1] for text in (_stem(source), model.rstrip("/\\"))]
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(part.lower() for part in parts))
    return slug.strip("-._")[:120].strip("-._") or "study"


def _stem(source: str) -> str:
    """Return ``source`` without a table's suffix; a file that is called train, by its folder."""
    path = re.sub(r"\.(csv|tsv|jsonl?|parquet)$", "", source.rstrip("/\\"), flags=re.IGNORECASE)
    folder = re.fullmatch(r"(.*[^./\\])[/\\]+train", path, re.IGNORECASE)
    return folder[1] if folder else path
