"""The section `data` of the study file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sft_tune.spec.section import Section


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
