"""The tasks and their metrics: what a study file may combine.

The training side of each task is in `sft_tune.trial.tasks`, under the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal[
    "image-classification",
    "text-classification",
    "image-regression",
    "text-regression",
    "token-classification",
    "semantic-segmentation",
    "object-detection",
    "audio-classification",
    "causal-lm",
    "seq2seq",
]
Metric = Literal[
    "auto",
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "f1_micro",
    "f1_weighted",
    "precision_macro",
    "recall_macro",
    "matthews",
    "mse",
    "rmse",
    "mae",
    "r2",
    "spearman",
    "entity_f1",
    "entity_precision",
    "entity_recall",
    "mean_iou",
    "pixel_accuracy",
    "map",
    "map_50",
    "perplexity",
    "token_accuracy",
    "chrf",
    "bleu",
    "rouge1",
    "rouge2",
    "rougeL",
    "exact_match",
    "loss",
]
Direction = Literal["maximize", "minimize"]
Input = Literal["image", "text", "words", "audio"]


@dataclass(frozen=True)
class MetricFacts:
    """Which way a metric is better, and the values that it can have (None: no limit)."""

    direction: Direction = "maximize"
    low: float | None = 0.0
    high: float | None = 1.0


SCORE = MetricFacts()
PERCENT = MetricFacts(high=100.0)
CORRELATION = MetricFacts(low=-1.0)
ERROR = MetricFacts("minimize", high=None)
METRICS: dict[str, MetricFacts] = {
    "accuracy": SCORE,
    "balanced_accuracy": SCORE,
    "f1_macro": SCORE,
    "f1_micro": SCORE,
    "f1_weighted": SCORE,
    "precision_macro": SCORE,
    "recall_macro": SCORE,
    "matthews": CORRELATION,
    "mse": ERROR,
    "rmse": ERROR,
    "mae": ERROR,
    "r2": MetricFacts(low=None),
    "spearman": CORRELATION,
    "entity_f1": SCORE,
    "entity_precision": SCORE,
    "entity_recall": SCORE,
    "mean_iou": SCORE,
    "pixel_accuracy": SCORE,
    "map": SCORE,
    "map_50": SCORE,
    "perplexity": MetricFacts("minimize", low=1.0, high=None),
    "token_accuracy": SCORE,
    "chrf": PERCENT,
    "bleu": PERCENT,
    "rouge1": SCORE,
    "rouge2": SCORE,
    "rougeL": SCORE,
    "exact_match": SCORE,
    "loss": ERROR,
}


@dataclass(frozen=True)
class TaskFacts:
    """What a study file must know of a task.

    Attributes:
        input: what a model is given.
        metrics: those that fit, the default one first.
        columns: the settings of `data` that name the columns that are read.
        targets: those of them that hold the target.
        data: other settings of `data` that have a meaning.
        classes: whether the targets are classes: splits are then stratified, and two are needed.
        masks: whether the target is a class for each pixel of an image.
        boxes: whether the target is any number of boxes, each with a class.
        writes: whether the target is a text: the model has no classes, and keeps its head.
        training: settings of `training` that have a meaning here and not for all tasks.
    """

    input: Input
    metrics: tuple[str, ...]
    columns: tuple[str, ...]
    data: tuple[str, ...]
    targets: tuple[str, ...] = ("label_column",)
    classes: bool = True
    masks: bool = False
    boxes: bool = False
    writes: bool = False
    training: tuple[str, ...] = ()


_CLASSIFICATION = (
    "accuracy",
    "balanced_accuracy",
    "f1_macro",
    "f1_micro",
    "f1_weighted",
    "precision_macro",
    "recall_macro",
    "matthews",
    "loss",
)
CLASS_TECHNIQUES = ("label_smoothing", "class_weights", "focal_gamma", "r_drop")
_IMAGE_TECHNIQUES = ("augment", "auto_augment", "color_jitter", "erasing", "mix")
# Of any number of labels an example: metrics of one class each have no meaning.
MULTI_LABEL = tuple(m for m in _CLASSIFICATION if m not in ("balanced_accuracy", "matthews"))
# Metrics of texts that a model has written.
WRITTEN = ("chrf", "bleu", "rouge1", "rouge2", "rougeL", "exact_match")
_REGRESSION = ("rmse", "mse", "mae", "r2", "spearman", "loss")
_IMAGE_DATA = ("image_size", "normalize", "skip_unreadable")
_TEXT_DATA = ("max_length",)
_BATCHES = ("batching", "batch_tokens")
TASKS: dict[Task, TaskFacts] = {
    "image-classification": TaskFacts(
        input="image",
        metrics=_CLASSIFICATION,
        columns=("image_column", "label_column"),
        data=("classes", *_IMAGE_DATA),
        training=(*_IMAGE_TECHNIQUES, *CLASS_TECHNIQUES),
    ),
    "text-classification": TaskFacts(
        input="text",
        metrics=_CLASSIFICATION,
        columns=("text_column", "text_pair_column", "label_column", "label_columns"),
        data=("classes", "multi_label", *_TEXT_DATA),
        targets=("label_column", "label_columns"),
        training=(*_BATCHES, "token_masking", *CLASS_TECHNIQUES),
    ),
    "image-regression": TaskFacts(
        input="image",
        metrics=_REGRESSION,
        columns=("image_column", "label_column"),
        data=_IMAGE_DATA,
        classes=False,
        training=("loss", *(name for name in _IMAGE_TECHNIQUES if name != "mix")),
    ),
    "text-regression": TaskFacts(
        input="text",
        metrics=_REGRESSION,
        columns=("text_column", "text_pair_column", "label_column"),
        data=_TEXT_DATA,
        classes=False,
        training=(*_BATCHES, "token_masking", "loss"),
    ),
    "token-classification": TaskFacts(
        input="words",
        metrics=("entity_f1", "entity_precision", "entity_recall", "accuracy", "loss"),
        columns=("tokens_column", "tags_column"),
        data=_TEXT_DATA,
        targets=("tags_column",),
        classes=False,
        training=(*_BATCHES, "label_smoothing"),
    ),
    "semantic-segmentation": TaskFacts(
        input="image",
        metrics=("mean_iou", "pixel_accuracy", "loss"),
        columns=("image_column", "mask_column"),
        data=("classes", "ignore_index", *_IMAGE_DATA),
        targets=("mask_column",),
        classes=False,
        masks=True,
        # The other ways to augment would move an image away from its mask.
        training=("augment", "color_jitter", "label_smoothing"),
    ),
    "object-detection": TaskFacts(
        input="image",
        metrics=("map", "map_50", "loss"),
        columns=("image_column", "boxes_column", "box_labels_column"),
        data=("classes", "box_format", *_IMAGE_DATA),
        targets=("boxes_column", "box_labels_column"),
        classes=False,
        boxes=True,
        training=("augment", "color_jitter"),
    ),
    "audio-classification": TaskFacts(
        input="audio",
        metrics=_CLASSIFICATION,
        columns=("audio_column", "label_column"),
        data=("classes", "max_seconds", "skip_unreadable"),
        training=("batching", *CLASS_TECHNIQUES),
    ),
    "causal-lm": TaskFacts(
        input="text",
        metrics=("loss", "perplexity", "token_accuracy"),
        columns=("prompt_column", "completion_column", "messages_column"),
        data=("packing", *_TEXT_DATA),
        targets=("completion_column", "messages_column"),
        classes=False,
        writes=True,
        training=(*_BATCHES, "label_smoothing"),
    ),
    "seq2seq": TaskFacts(
        input="text",
        metrics=(*WRITTEN, "token_accuracy", "loss"),
        columns=("source_column", "target_column"),
        data=("source_prefix", "max_target_length", *_TEXT_DATA),
        targets=("target_column",),
        classes=False,
        writes=True,
        training=(*_BATCHES, "label_smoothing"),
    ),
}
# The settings of `data` and `training` that some tasks have no use for.
DATA_OF_SOME = frozenset(key for facts in TASKS.values() for key in (*facts.columns, *facts.data))
TRAINING_OF_SOME = frozenset(key for facts in TASKS.values() for key in facts.training)


def resolve_metric(metric: str, task: Task) -> str:
    """Return ``metric``, for ``auto`` the default one of ``task``."""
    return TASKS[task].metrics[0] if metric == "auto" else metric
