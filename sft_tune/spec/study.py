"""What a study file says: frozen models, one place for every key, default and description.

The JSON Schema for editors and the reference in the README are both made from the
descriptions here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sft_tune.spec.function_task import is_function
from sft_tune.spec.space import Parameter
from sft_tune.spec.tasks import METRICS, SCORE, TASKS, Direction, Metric, Task, resolve_metric
from sft_tune.spec.training import TrainingSpec

__all__ = ["Metric", "Task"]

# Tasks and metrics of a user's own training function (see `function_task`).
FunctionTask = Annotated[str, Field(pattern=r"^python:.+")]
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.@/-]*$", max_length=64)]
if TYPE_CHECKING:
    # What trains the built-in tasks never sees another.
    AnyTask = Task
else:
    AnyTask = Task | FunctionTask
Scalar = bool | int | float | str | None


class Section(BaseModel):
    """A section of the study file: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)


class NormalizeSpec(Section):
    """Per-channel mean and standard deviation of pixel values scaled to 0..1."""

    mean: tuple[float, ...] = Field(description="Mean per channel, pixels scaled to 0..1.")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        description="Standard deviation per channel."
    )


class DataSpec(Section):
    """Where the labelled examples come from, and how they are split."""

    source: str = Field(
        description="A folder of images or sounds (one subfolder a class), a .csv, .jsonl or "
        ".parquet file or a folder of them, COCO's annotations (.json) of images, or their folder; "
        "or torchvision:NAME, hub:ID (Hugging Face hub), sklearn:digits, python:module:function or "
        "python:file.py:function (called with the split's name, returns examples)."
    )
    train: str | None = Field(
        None,
        description="Training split: a file or folder inside source, or the hub's split name. "
        "Default: `train` where the source has one, else the whole source.",
    )
    validation: str | None = Field(
        None,
        description="Validation split, as for train. Default: `validation`, `valid` or `val` "
        "where the source has one, else taken from train.",
    )
    test: str | None = Field(
        None,
        description="Test split, as for train. Default: `test` where the source has one. "
        "Never read by the search.",
    )
    subset: str | None = Field(None, description="Configuration name of a hub data set.")
    text_column: str = Field("text", description="Column that holds the text.")
    text_pair_column: str | None = Field(
        None, description="Column that holds a second text; the model reads both as a pair."
    )
    image_column: str = Field("image", description="Column that holds the image.")
    audio_column: str = Field(
        "audio", description="Column that holds the path of the sound (audio-classification)."
    )
    label_column: str = Field("label", description="Column that holds the label.")
    tokens_column: str = Field(
        "tokens", description="Column that holds a list of words (token-classification)."
    )
    tags_column: str = Field(
        "ner_tags",
        description="Column that holds a list of tags, one a word: O, B-PER, I-PER, ...",
    )
    mask_column: str = Field(
        "mask", description="Column that holds the mask of an image (semantic-segmentation)."
    )
    prompt_column: str = Field(
        "prompt", description="Column that holds what the model is given (causal-lm)."
    )
    completion_column: str = Field(
        "completion",
        description="Column that holds what the model is to write after it (causal-lm); only "
        "this is learnt, with the end-of-text token after it. Both are tokenized each for itself: "
        "a space or line's end between them belongs to one of them.",
    )
    messages_column: str | None = Field(
        None,
        description="In place of the two: column of chats (causal-lm), each a list of messages "
        "with `role` and `content`, written out by the tokenizer's chat template; only what the "
        "assistant says is learnt.",
    )
    source_column: str = Field(
        "source", description="Column that holds the text to read (seq2seq)."
    )
    target_column: str = Field(
        "target", description="Column that holds the text to write (seq2seq)."
    )
    source_prefix: str = Field(
        "",
        description="What is put before each source, as T5's models have it (seq2seq): "
        "`translate English to German: `.",
    )
    max_target_length: int = Field(
        128, ge=4, le=131072, description="Targets are cut to this many tokens (seq2seq)."
    )
    packing: bool = Field(
        False,
        description="Several training examples in one row of at most max_length tokens, none "
        "of which sees another (causal-lm): no padding; batch_size then counts rows.",
    )
    ignore_index: int = Field(
        255,
        ge=0,
        le=255,
        description="The index in masks of pixels that do not count (semantic-segmentation).",
    )
    boxes_column: str = Field(
        "boxes",
        description="Column that holds the list of boxes of an image, each of four numbers in "
        "pixels (object-detection).",
    )
    box_labels_column: str = Field(
        "labels", description="Column that holds the labels of the boxes (object-detection)."
    )
    box_format: Literal["xyxy", "xywh"] = Field(
        "xyxy",
        description="What the four numbers of boxes_column are: xyxy (left, top, right, bottom), "
        "xywh (left, top, width, height). COCO's own files are xywh whatever this is.",
    )
    label_columns: tuple[str, ...] | None = Field(
        None,
        description="With multi_label: columns of 0 and 1, one a label, in place of label_column.",
    )
    multi_label: bool = Field(
        False,
        description="An example has any number of labels: label_column holds lists of them (in "
        "CSV separated by |), or label_columns one column each.",
    )
    classes: tuple[str | int, ...] | None = Field(
        None,
        description="Keep only the examples of these labels, of images with boxes the boxes; of "
        "masks: the names of the indices 0, 1, ... Default: all.",
    )
    validation_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of train that becomes validation (stratified) when there is none.",
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=100,
        description="Cross-validation: a trial is trained so many times, each time with another "
        "share of train as validation (stratified); its value is the mean. A validation split of "
        "the source's own is not read.",
    )
    fold: int | None = Field(
        None,
        ge=0,
        description="Only this one of the folds, from 0. Default: each in turn.",
    )
    test_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the source that becomes test (stratified) when there is none.",
    )
    split_seed: int = Field(
        0, ge=0, description="Seed of the splits and limits; the same for all trials."
    )
    train_limit: int | None = Field(
        None, gt=0, description="At most this many training examples (stratified)."
    )
    validation_limit: int | None = Field(
        None, gt=0, description="At most this many validation examples (stratified)."
    )
    test_limit: int | None = Field(
        None, gt=0, description="At most this many test examples (stratified)."
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=4096,
        description="Side in pixels that images are resized to (square). Default: their own "
        "size when all are equal, else what the model was made for. Of object-detection: the "
        "shorter side that the detector sees, the other in proportion. Default: the detector's.",
    )
    normalize: NormalizeSpec | None = Field(
        None,
        description="Mean and deviation of the pixels. Default: those of the pretrained "
        "weights, else 0.5 and 0.5.",
    )
    max_length: int = Field(
        256,
        ge=4,
        le=131072,
        description="Texts are cut to this many tokens. Of causal-lm prompts lose their beginning, "
        "chats their end; one of which nothing is left to learn is an error.",
    )
    max_seconds: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Sounds are cut to this many seconds (audio-classification).",
    )
    skip_unreadable: bool = Field(
        False,
        description="Leave out images and sounds that cannot be read; else they are errors.",
    )


class ModelSpec(Section):
    """The pretrained model whose weights are fine-tuned; its head is replaced to fit the labels."""

    name: str = Field(
        description="torchvision:NAME, transformers:ID-or-path, timm:NAME (needs "
        "`sft_tune[timm]`), or builtin:convnet (a small convolutional network of this package)."
    )
    weights: str = Field(
        "DEFAULT",
        description="DEFAULT (the library's best), the library's name of a set of weights, a path "
        "to a .safetensors or .pt state dict, or none (train from scratch).",
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Dropout: before the head (image models), in hidden layers and head "
        "(transformers). Default: the model's own.",
    )
    stochastic_depth: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Probability that a residual branch is left out, rising linearly to this at "
        "the last one, in models that have it (ConvNeXt, EfficientNet, Swin, ...). Default: the "
        "model's own.",
    )
    head_init: Literal["default", "zero", "normal", "xavier"] = Field(
        "default",
        description="How the output layer begins: default (as its library has it), zero, normal "
        "(deviation 0.02), xavier (uniform).",
    )
    reinit_blocks: int = Field(
        0, ge=0, description="So many of the last blocks begin with random weights, too."
    )
    lora_rank: int | None = Field(
        None,
        ge=1,
        description="LoRA: rank of the updates that are trained in place of the backbone's weights "
        "(needs `sft_tune[lora]`). Default: no LoRA.",
    )
    lora_alpha: float | None = Field(
        None,
        gt=0,
        description="LoRA: an update is multiplied by this over lora_rank. Default: twice the "
        "rank.",
    )
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="LoRA: dropout before an update's first factor."
    )
    lora_targets: str = Field(
        "all-linear",
        description="LoRA: which layers get updates: all-linear (in networks that are mostly "
        "convolutions those, too), or the ends of their names, with commas between (query,value).",
    )
    lora_merge: bool = Field(
        True,
        description="LoRA: whether checkpoints have the updates merged into the weights, like a "
        "model without LoRA; else peft is needed to load them.",
    )


class ObjectiveSpec(Section):
    """What is optimized: one metric on the validation split."""

    metric: Metric | MetricName = Field(
        "auto",
        description="The metric to optimize, on validation; auto: the first of the task's. Any "
        "that a training function of yours reports.",
    )
    direction: Literal["auto", "maximize", "minimize"] = Field(
        "auto",
        description="auto: minimize losses and errors, maximize scores; a training function of "
        "yours needs one of the two others.",
    )
    rungs: int = Field(
        10,
        ge=1,
        le=100,
        description="Evaluations per trial, evenly spaced over its own schedule; a trial may "
        "be pruned at each.",
    )
    evaluate: Literal["auto", "all"] | Annotated[int, Field(ge=2)] = Field(
        "auto",
        description="Validation examples of every rung but the last, the same for all trials "
        "(stratified, drawn by data.split_seed): all, or so many. auto: all, unless that would be "
        "over 5 % of the shortest trial; then fewer, at least 1000. What becomes a trial's value "
        "is always measured on all of them; a trial that is pruned before that has none.",
    )
    beams: int = Field(
        1,
        ge=1,
        le=64,
        description="Metrics of what is written (seq2seq): beams of the search for the likeliest "
        "text; 1: greedy.",
    )
    max_new_tokens: int = Field(
        64, ge=1, description="The same: a text is ended after this many tokens."
    )


class SamplerSpec(Section):
    """How configurations are chosen."""

    name: Literal["tpe", "random", "grid", "gp", "qmc"] = Field(
        "tpe", description="tpe (Bayesian), random, grid, gp (Gaussian process), qmc."
    )
    startup_trials: int = Field(10, ge=1, description="Trials before tpe or gp begin to model.")
    startup: Literal["random", "qmc"] = Field(
        "random",
        description="How these are drawn: random, or qmc (evenly over the ranges: a scrambled "
        "Sobol sequence; choices and what depends on them at random).",
    )
    enqueue: tuple[dict[str, Scalar], ...] = Field(
        (),
        description="Configurations to try first, after the default one: keys of the space; "
        "those left out take their default. Like the default one, they are never pruned.",
    )


class PrunerSpec(Section):
    """When a trial that is behind is stopped."""

    name: Literal["asha", "hyperband", "median", "percentile", "wilcoxon", "none"] = Field(
        "asha",
        description="asha (asynchronous successive halving), hyperband, median, percentile, "
        "wilcoxon (signed-rank test against the best trial, fold by fold; with data.folds), none.",
    )
    first: int = Field(
        20, ge=1, le=99, description="Progress in percent before which nothing is pruned."
    )
    reduction: int = Field(
        3, ge=2, description="asha and hyperband: one in this many goes on at each cut."
    )
    percentile: float = Field(
        25.0, gt=0, lt=100, description="percentile: keep a trial in this best percentage."
    )
    p_threshold: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="wilcoxon: a trial is stopped when it is worse than the best one with a "
        "p-value below this.",
    )
    startup_trials: int = Field(
        5,
        ge=0,
        description="All but wilcoxon: nothing is pruned before so many trials are completed.",
    )


class BudgetSpec(Section):
    """When the study ends: at the first of these. All are totals of the study, over restarts."""

    trials: int | None = Field(
        None,
        ge=1,
        description="Total number of trials. Default: 30; for grid, each cell once.",
    )
    hours: float | None = Field(
        None,
        gt=0,
        description="Total hours that the study is being run. No trial starts after; those "
        "that run are finished.",
    )
    target: float | None = Field(
        None, description="Stop when the objective has reached this value."
    )
    failures: int = Field(5, ge=1, description="Give up after so many failed trials in a row.")


class ConfirmSpec(Section):
    """Which configurations are trained again after the search, and how often."""

    top: int = Field(
        3, ge=1, description="So many of the best trials; the default configuration comes too."
    )
    seeds: int = Field(
        5,
        ge=1,
        le=1000,
        description="Fresh seeds that each is trained with; the same for all, so that they can "
        "be compared seed by seed.",
    )


class ResourcesSpec(Section):
    """Where trials run, and what they may keep."""

    engine: Literal["local", "ray"] = Field(
        "local",
        description="What places the workers: local (processes of this machine) or ray (actors "
        "of a Ray cluster; `--ray-address` joins one, else a local one is started).",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="With `engine: ray`: how many workers to ask Ray for. Default: as many as the "
        "cluster has room for at the start; more wait for it to grow.",
    )
    devices: Literal["auto", "cpu"] | tuple[int, ...] = Field(
        "auto",
        description="auto (every GPU where there is one, else the CPU), cpu, or "
        "a list of GPU numbers.",
    )
    trials_per_device: int | None = Field(
        None,
        ge=1,
        description="Trials at once on each GPU, or on the CPU. Default: 1 on a GPU, or as many as "
        "memory_per_trial admits; on the CPU what a short measurement finds fastest.",
    )
    threads_per_trial: int | None = Field(
        None, ge=1, description="CPU threads of a trial. Default: all cores, shared evenly."
    )
    memory_per_trial: float | None = Field(
        None,
        gt=0,
        description="GiB that a trial needs, of the GPU or (on the CPU) of the machine: no more "
        "trials run at once than it holds.",
    )
    stall_minutes: float = Field(
        30.0,
        gt=0,
        description="A trial that reports nothing for so long, not even a step, is killed and "
        "started again from its last checkpoint.",
    )
    grace_seconds: float = Field(
        25.0,
        gt=0,
        description="After SIGTERM trials have so long to save a checkpoint; then they are killed.",
    )
    checkpoint_seconds: float = Field(
        30.0,
        ge=0,
        description="At rungs, save what a resume needs when this much time has passed since "
        "the last save; 0: at every rung.",
    )
    max_attempts: int = Field(
        3,
        ge=1,
        description="A trial whose worker or runner dies is started so many times from the same "
        "rung; one that got further in between goes on being started.",
    )
    keep_checkpoints: int = Field(
        5, ge=1, description="Best checkpoints that stay on disk, one a trial."
    )
    evaluation_batch_size: int = Field(
        256, ge=1, description="Batch size of evaluation (no effect on the numbers but rounding)."
    )
    feature_cache: bool = Field(
        True,
        description="With `freeze: backbone` and nothing random before the head: compute what the "
        "backbone makes of each example once, keep it with the prepared data, and train the heads "
        "of all trials on it (no effect on the numbers but rounding).",
    )
    compile: bool | Literal["auto"] = Field(
        False,
        description="Train through `torch.compile` (needs a C++ compiler on the CPU): true, or "
        "auto, where a trial takes ten minutes or more and its steps save more time than the "
        "compilation takes, as measured once on this machine. Where it fails the trial "
        "goes on without, and says so (no effect on the numbers but rounding).",
    )
    stack: Literal["auto", "off"] | Annotated[int, Field(ge=2, le=64)] = Field(
        "auto",
        description="Trials that train as one on each slot: heads where `feature_cache` applies, "
        "and whole models without dropout, augmentation and `compile`. The space has only "
        "settings that each may have for itself: learning rate and schedule, epochs, optimizer "
        "(adamw, adam, sgd) and what belongs to it, clipping, label smoothing, of heads dropout "
        "(no effect on the numbers but rounding). auto: up to 8 in all, or 32 where neither "
        "sampler nor pruner learns from trials, where a short measurement finds that faster; off; "
        "or how many. A `worker` does it only with `--study`.",
    )
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        (),
        description="Trackers that each trial is a run in, besides the database: tensorboard "
        "(event files in the trial's folder), mlflow and wandb (where their own environment "
        "variables say).",
    )


class StorageSpec(Section):
    """Where results are kept. Relative paths are relative to the study file."""

    url: str | None = Field(
        None,
        description="Database: sqlite:///file.db, postgresql://..., mysql://... Default: "
        "--storage, then SFT_TUNE_STORAGE, then sqlite:///sft_tune.db in the working directory.",
    )
    artifacts: str | None = Field(
        None,
        description="Where checkpoints and logs go: a folder, or a URL that fsspec knows (s3://, "
        "gs://, sftp://, ...) for machines that share no folder. Default: sft_tune_runs beside "
        "the SQLite file, else in the working directory.",
    )


class StudySpec(Section):
    """One study: what to fine-tune, on what, what to search, for how long."""

    name: str = Field(
        min_length=1,
        max_length=120,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the study, unique in its database: letters, digits, '.', '_', '-'.",
    )
    task: AnyTask = Field(
        description="What the model learns to do: "
        + ", ".join(TASKS)
        + ", or a training function of yours: python:module:function or python:file.py:function."
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Seed of the sampler and, with its number, of each trial."
    )
    data: DataSpec = Field(description="Where the examples come from.")
    model: ModelSpec = Field(description="What is fine-tuned.")
    training: TrainingSpec = Field(
        default_factory=TrainingSpec, description="The settings that are not searched."
    )
    arguments: dict[str, Scalar] = Field(
        default_factory=dict,
        description="Settings of a training function of yours, by any name: fixed, or the defaults "
        "of those that are searched (else: the first choice, the lowest value).",
    )
    space: dict[str, Parameter] = Field(
        default_factory=dict,
        description="The settings that are searched: keys of training, or model.KEY; of a "
        "training function of yours any name.",
    )
    objective: ObjectiveSpec = Field(
        default_factory=ObjectiveSpec, description="What is optimized."
    )
    sampler: SamplerSpec = Field(
        default_factory=SamplerSpec, description="How configurations are chosen."
    )
    pruner: PrunerSpec = Field(
        default_factory=PrunerSpec, description="When a trial is stopped early."
    )
    budget: BudgetSpec = Field(default_factory=BudgetSpec, description="When the study ends.")
    confirm: ConfirmSpec | None = Field(
        None,
        description="When given, `start` trains the best configurations again over fresh seeds "
        "at the end, and evaluates them on the test split. `sft-tune confirm` does it any time.",
    )
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec, description="Where trials run.")
    storage: StorageSpec = Field(default_factory=StorageSpec, description="Where results are kept.")

    @model_validator(mode="after")
    def _with_metric(self) -> Self:
        """Name the metric that ``auto`` stands for: whoever reads a study need not know tasks."""
        object.__setattr__(self, "objective", with_metric(self.objective, self.task))
        return self

    @property
    def direction(self) -> Direction:
        """The direction of the objective, ``auto`` resolved."""
        return resolve_direction(self.objective)


def with_metric(objective: ObjectiveSpec, task: Task) -> ObjectiveSpec:
    """Return ``objective`` of a study of ``task`` with its metric named."""
    if is_function(task):
        return objective
    metric = resolve_metric(objective.metric, task)
    return (
        objective.model_copy(update={"metric": metric}) if objective.metric == "auto" else objective
    )


def resolve_direction(objective: ObjectiveSpec) -> Direction:
    """Return the direction of ``objective``: losses are minimized, scores maximized."""
    if objective.direction != "auto":
        return objective.direction
    # A metric of a training function that has no direction is refused where the file is checked.
    return METRICS.get(objective.metric, SCORE).direction
