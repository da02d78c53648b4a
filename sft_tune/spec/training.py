"""The settings of one fine-tuning run: the `training` section, and all that `space` may search."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sft_tune.spec.section import Section


class TrainingSpec(Section):
    """Every setting of a fine-tuning run; each may be searched by naming it in `space`."""

    epochs: int = Field(3, ge=1, le=10_000, description="Passes over the training split.")
    batch_size: int = Field(32, ge=1, description="Examples per optimizer step.")
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="Texts: at most so many tokens in a batch, padding included, in place of "
        "batch_size: batches of short texts have more examples. Not below the longest that a text "
        "may be. Default: batch_size counts.",
    )
    batching: Literal["bucketed", "random"] = Field(
        "bucketed",
        description="Texts and sounds: batches of similar lengths, other ones each epoch "
        "(bucketed: hardly any padding, several times faster where lengths differ), or of any "
        "(random).",
    )
    optimizer: Literal["adamw", "adam", "sgd", "adafactor", "lion", "muon"] = Field(
        "adamw",
        description="adamw (decoupled weight decay), adam (L2), sgd (momentum, L2), adafactor, "
        "lion, muon (hidden matrices, adamw for the rest); the last three decay decoupled.",
    )
    learning_rate: float = Field(
        1e-4, gt=0, description="Peak learning rate, reached after the warm-up."
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd and muon.")
    nesterov: bool | None = Field(
        None,
        description="Nesterov's momentum. Default: false for sgd, true for muon.",
    )
    beta1: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Decay of the mean of gradients: adamw, adam, lion, and adamw within muon. "
        "Default: 0.9.",
    )
    beta2: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Decay of the mean of squared gradients, in lion of the gradients. "
        "Default: 0.999; lion 0.99.",
    )
    epsilon: float | None = Field(
        None,
        gt=0,
        description="What adamw and adam (and adamw within muon) add to the divisor. "
        "Default: 1e-8.",
    )
    weight_decay: float = Field(
        0.01, ge=0, description="Weight decay; not on biases and normalization layers."
    )
    decay_all: bool = Field(
        False, description="Whether weight_decay and l1 act on biases and normalization, too."
    )
    l1: float = Field(
        0.0,
        ge=0,
        description="This times the sum of the absolute weights is added to what is minimized, "
        "over the weights that weight_decay acts on.",
    )
    schedule: Literal[
        "constant",
        "linear",
        "cosine",
        "exponential",
        "step",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
        "one_cycle",
    ] = Field("linear", description="Shape of the learning rate after the warm-up.")
    warmup: float = Field(
        0.1, ge=0, lt=1, description="Share of the trial's steps in which the rate rises linearly."
    )
    min_learning_rate: float = Field(
        0.0,
        ge=0,
        description="Learning rate that linear, cosine, polynomial, warmup_stable_decay and "
        "one_cycle end at.",
    )
    decay_factor: float = Field(
        0.9,
        gt=0,
        le=1,
        description="exponential: the rate is multiplied by this each epoch; step: every "
        "decay_epochs.",
    )
    decay_epochs: int = Field(
        1, ge=1, description="step: epochs between two drops of the learning rate."
    )
    cycles: int = Field(
        1, ge=1, le=1000, description="cosine: falls so many times, each time from the peak."
    )
    power: float = Field(
        2.0, gt=0, le=20, description="polynomial: exponent of the share that is left."
    )
    cooldown: float = Field(
        0.2,
        gt=0,
        le=1,
        description="warmup_stable_decay: last share of the trial's steps, in which the rate "
        "falls linearly.",
    )
    clip_norm: float | None = Field(
        1.0, gt=0, description="Gradients are scaled down to this norm; null: never."
    )
    clip_value: float | None = Field(
        None,
        gt=0,
        description="Each gradient is cut to this size, before clip_norm acts. Default: never.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread over all classes."
    )
    loss: Literal["auto", "mse", "mae", "huber"] = Field(
        "auto",
        description="Regression: mse (auto), mae, or huber (quadratic up to one standard deviation "
        "of the targets, linear beyond). Classification: auto, the cross-entropy.",
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none",
        description="balanced: classes count in the training loss by the inverse of how often "
        "they occur.",
    )
    focal_gamma: float = Field(
        0.0,
        ge=0,
        le=10,
        description="Focal loss: an example counts (1 - probability of its class) to this power; "
        "0: cross-entropy.",
    )
    r_drop: float = Field(
        0.0,
        ge=0,
        description="R-Drop: this times the divergence of two passes with dropout is added to "
        "the loss; a step takes twice as long.",
    )
    freeze: Literal["none", "backbone", "blocks", "head_first", "gradual"] = Field(
        "none",
        description="What is not trained: none, backbone (only the new head is), blocks (the "
        "embeddings and the first freeze_blocks blocks are not), head_first (the head alone until "
        "unfreeze_at, then everything), gradual (from the head down, block by block, everything "
        "from unfreeze_at on).",
    )
    freeze_blocks: int = Field(
        1, ge=1, description="freeze: blocks: how many blocks, counted from the input."
    )
    unfreeze_at: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="freeze: head_first and gradual: progress from which everything is trained.",
    )
    unfrozen_learning_rate: float | None = Field(
        None,
        gt=0,
        description="freeze: head_first: peak learning rate from unfreeze_at on. Default: "
        "learning_rate.",
    )
    freeze_batch_norm: bool = Field(
        False, description="Whether batch norm keeps the statistics that it was pretrained with."
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Each block's learning rate is this times that of the block above it.",
    )
    head_multiplier: float = Field(
        1.0, gt=0, description="The head's learning rate is this times the backbone's."
    )
    averaging: Literal["none", "ema", "swa"] = Field(
        "none",
        description="What is evaluated and kept in place of the last weights: ema (their "
        "exponential moving average), swa (their mean from swa_start on).",
    )
    ema_decay: float = Field(
        0.999, gt=0, lt=1, description="averaging: ema: share of the average that a step leaves."
    )
    swa_start: float = Field(
        0.75, ge=0, lt=1, description="averaging: swa: progress from which weights are averaged."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Early stopping: a trial ends after so many rungs without improvement of the "
        "objective. Default: never.",
    )
    min_change: float = Field(
        0.0, ge=0, description="patience: what is more than this is an improvement."
    )
    augment: Literal["none", "flip", "flip_crop"] = Field(
        "none",
        description="Images: random horizontal flip; flip_crop also crops after padding by 1/8.",
    )
    auto_augment: Literal["none", "randaugment", "trivialaugment"] = Field(
        "none",
        description="Images: randaugment (two random operations of one magnitude), "
        "trivialaugment (one of a random magnitude).",
    )
    magnitude: int = Field(
        9, ge=0, le=30, description="auto_augment: randaugment: strength of its operations."
    )
    color_jitter: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Images: brightness, contrast and saturation change by up to this share, the "
        "hue by a quarter of it.",
    )
    erasing: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Images: probability that a random box is black.",
    )
    token_masking: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Texts: probability that a token is replaced by the mask token.",
    )
    mix: Literal["none", "mixup", "cutmix"] = Field(
        "none", description="Images: each is mixed with another of its batch, and their labels."
    )
    mix_alpha: float | None = Field(
        None,
        gt=0,
        le=100,
        description="mix: shares are drawn from Beta(this, this). Default: 0.2 for mixup, 1 for "
        "cutmix.",
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Gradient accumulation: at most so many examples of a batch go through the "
        "model at once, with the same gradient (batch norm normalizes each part). Default: the "
        "batch, or what fits into memory.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Activations within blocks are computed again, not kept: slower, less memory.",
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 on GPUs that have it, else fp32. tf32: single precision whose "
        "products are rounded to 10 bits on GPUs that have that, several times faster than fp32. "
        "On a CPU tf32 is fp32, bf16 is mostly slower, and detectors were seen to diverge with it "
        "at times.",
    )
