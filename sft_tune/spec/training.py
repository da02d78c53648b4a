"""The settings of one fine-tuning run: the `training` section, and all that `space` may search."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TrainingSpec(BaseModel):
    """Every setting of a fine-tuning run; each may be searched by naming it in `space`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(3, ge=1, le=10_000, description="Passes over the training split.")
    batch_size: int = Field(32, ge=1, description="Examples per optimizer step.")
    optimizer: Literal["adamw", "adam", "sgd"] = Field(
        "adamw",
        description="adamw (decoupled weight decay), adam (L2), sgd (momentum, L2).",
    )
    learning_rate: float = Field(
        1e-4, gt=0, description="Peak learning rate, reached after the warm-up."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(
        0.01, ge=0, description="Weight decay; not on biases and normalization layers."
    )
    schedule: Literal["constant", "linear", "cosine", "exponential"] = Field(
        "linear", description="Shape of the learning rate after the warm-up."
    )
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of the trial's steps in which the rate rises linearly."
    )
    min_learning_rate: float = Field(
        0.0, ge=0, description="Learning rate that linear and cosine end at."
    )
    decay_factor: float = Field(
        0.9, gt=0, le=1, description="exponential: the rate is multiplied by this each epoch."
    )
    clip_norm: float | None = Field(
        1.0, gt=0, description="Gradients are scaled down to this norm; null: never."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread over all classes."
    )
    freeze: Literal["none", "backbone"] = Field(
        "none", description="none, or backbone: only the new head is trained."
    )
    head_multiplier: float = Field(
        1.0, gt=0, description="The head's learning rate is this times the backbone's."
    )
    augment: Literal["none", "flip", "flip_crop"] = Field(
        "none",
        description="Images: random horizontal flip; flip_crop also crops after padding by 1/8.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 on GPUs that have it, else fp32."
    )
