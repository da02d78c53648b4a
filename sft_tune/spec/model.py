"""The section `model` of the study file."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sft_tune.spec.section import Section


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
