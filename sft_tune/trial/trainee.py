"""A configuration made concrete: data, model, optimizer and plan on one device."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.evaluating import rungs_of
from sft_tune.trial.averaging import Averaging, refresh_statistics
from sft_tune.trial.class_loss import ClassLoss, class_loss
from sft_tune.trial.data import (
    AudioSplit,
    BoxSplit,
    FeatureSplit,
    ImageSplit,
    Prepared,
    Split,
    TextSplit,
    epoch_order,
    gather,
)
from sft_tune.trial.data.augment import Augmentation
from sft_tune.trial.data.resident import hold
from sft_tune.trial.data.subset import Subset, early_subset
from sft_tune.trial.data.text import load_tokenizer, text_encoder
from sft_tune.trial.device import autocast, is_reduced, resolve_precision, use_tf32
from sft_tune.trial.freezing import Freezing
from sft_tune.trial.heads import normalizes_batches
from sft_tune.trial.initialize import initialize
from sft_tune.trial.lora import add_lora
from sft_tune.trial.models import BuiltModel, build_model
from sft_tune.trial.models_language import check_packing, writing_of
from sft_tune.trial.optimizers import build_optimizer
from sft_tune.trial.plan import Plan
from sft_tune.trial.portions import Portion
from sft_tune.trial.rematerialize import rematerialize
from sft_tune.trial.rewind import Rewind
from sft_tune.trial.schedules import at_progress, learning_rate
from sft_tune.trial.seeding import seed_everything

# As many as give steady statistics of batch norm; a pass over all would cost an epoch a rung.
STATISTICS_EXAMPLES = 2048


@dataclass
class Trainee:
    """A configuration made concrete: data, model, optimizer, plan, on one device.

    ``portion`` is how much of a batch goes through the model at once, ``rewind`` what takes back
    a try at a step that ran out of memory, ``freezing`` what is trained when, ``averaging`` the
    average of the weights where one is asked for, ``features`` those of the backbone by split where
    they are known, as long as it is frozen: then only the head is run. ``subset`` is what early
    rungs are evaluated on; None: on all of validation.
    """

    config: TrialConfig
    data: Prepared
    plan: Plan
    model: BuiltModel
    optimizer: Optimizer
    scaler: torch.GradScaler
    device: torch.device
    dtype: torch.dtype
    portion: Portion
    rewind: Rewind
    freezing: Freezing
    loss: ClassLoss | None
    augmentation: Augmentation
    averaging: Averaging | None = None
    features: dict[str, FeatureSplit] = field(default_factory=dict)
    subset: Subset | None = None

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step ``step``."""
        plan = self.plan
        training = at_progress(self.config.training, step / plan.horizon)
        return learning_rate(training, step, plan.horizon, plan.steps_per_epoch)

    def set_training_mode(self) -> None:
        """Set the module to training, what is frozen of it to evaluation."""
        self.freezing.set_training_mode()

    def hold_examples(self) -> None:
        """Have what is gathered from whole on the device, where that is a GPU with room for it."""
        data, features = self.data, self.features
        splits: Mapping[str, Split | FeatureSplit] = features or {
            "train": data.train,
            "validation": data.validation,
        }
        identity = features["train"].identity if features else data.identity
        trained = sum(p.nbytes for p in self.model.module.parameters() if p.requires_grad)
        # Gradients, and up to two moments.
        hold(identity, splits, self.device, spoken_for=3 * trained)

    @property
    def backbone_stays(self) -> bool:
        """Whether the backbone is to the end as it was made, so that nobody need copy it."""
        return bool(self.features) and self.config.training.freeze == "backbone"

    def enter(self, step: int) -> bool:
        """Open the parameters that step ``step`` trains; tell whether features end with that."""
        if not self.freezing.enter(step / self.plan.horizon):
            return False
        self.portion.in_pairs = normalizes_batches(self.model.module)
        if not self.features or self.freezing.only_head:
            return False
        self.features, self.model.chain = {}, ()
        return True

    def averaged(self) -> AbstractContextManager[None]:
        """Put the average of the weights in their place inside, where there is one.

        Leave with the module set to training, or to evaluation: set it back afterwards.
        """
        if self.averaging is None:
            return nullcontext()
        return self.averaging.in_place(lambda module: self._refresh(module))

    def _refresh(self, module: nn.Module) -> None:
        """Take batch-norm statistics anew, from up to `STATISTICS_EXAMPLES` of training."""
        order = epoch_order(len(self.data.train), self.config.seed, 0)[:STATISTICS_EXAMPLES]
        size = min(self.portion.limit or len(order), self.config.training.batch_size)
        # A batch of one example has no deviation where its maps are of one pixel.
        parts: tuple[Tensor, ...] = torch.split(order, size)
        parts = tuple(part for part in parts if len(part) > 1 or len(order) == 1)
        refresh_statistics(module, (functools.partial(self._forward, part) for part in parts))

    def _forward(self, indices: Tensor) -> None:
        batch = gather(self.data.train, indices, self.device, normalize=self.model.normalize)
        with autocast(self.device, self.dtype):
            self.model.statistics(batch.inputs)


def make_plan(config: TrialConfig, data: Prepared) -> Plan:
    """Return the course of a trial of ``config`` over ``data``."""
    training = config.training
    return Plan(
        examples=len(data.train),
        batch_size=training.batch_size,
        epochs=training.epochs,
        rung_count=rungs_of(
            config.objective,
            train=len(data.train),
            validation=len(data.validation),
            epochs=config.fewest_epochs or training.epochs,
        ),
        seed=config.seed,
        lengths=_lengths(config, data.train),
        batch_tokens=training.batch_tokens,
        tokens=_tokens(data.train) if training.batch_tokens is not None else None,
    )


def _lengths(config: TrialConfig, split: Split) -> NDArray[np.int64] | None:
    """Return the lengths that batches are made by; None where they are not."""
    if isinstance(split, TextSplit | AudioSplit) and config.training.batching == "bucketed":
        return split.lengths
    return None


def _tokens(split: Split) -> NDArray[np.int64]:
    """Return the tokens of each example, of its text and of the text to be written, [n, 1 or 2].

    Raises:
        ModelError: where examples are no texts.
    """
    if not isinstance(split, TextSplit):
        raise ModelError("training.batch_tokens: these examples are no texts; use batch_size")
    parts = [split.lengths]
    if split.answers is not None:
        parts.append(np.diff(split.answers.offsets))
    return np.stack(parts, axis=1)


def set_up(
    config: TrialConfig, data: Prepared, device: torch.device, made: BuiltModel | None = None
) -> Trainee:
    """Return the trainee of ``config`` before its first step, every random state seeded.

    ``made`` is its model where it has been built already.

    Raises:
        ModelError: for a model or weights that are unknown, cannot be had, or do not fit.
    """
    use_tf32(config.training.precision, device)
    model = _model(config, data, device) if made is None else made
    train = data.train
    freezing = Freezing(model.module, model.blocks, config.training)
    optimizer = build_optimizer(model, config.training)
    freezing.enter(0.0)
    freezing.set_training_mode()
    dtype = resolve_precision(config.training.precision, device)
    # What is drawn while training does not depend on how much the model's making has drawn.
    seed_everything(config.seed)
    trainee = Trainee(
        config=config,
        data=data,
        plan=make_plan(config, data),
        model=model,
        optimizer=optimizer,
        scaler=torch.GradScaler(device.type, enabled=dtype is torch.float16),
        device=device,
        dtype=dtype,
        portion=_portion(model, config.training.micro_batch),
        rewind=Rewind(model.module, device),
        freezing=freezing,
        loss=class_loss(config.training, train.targets, len(data.labels), device),
        augmentation=_augmentation(config),
        averaging=_averaging(model, config),
        subset=early_subset(config, data),
    )
    if not freezing.only_head:  # there features may stand in for the examples
        trainee.hold_examples()
    return trainee


def _model(config: TrialConfig, data: Prepared, device: torch.device) -> BuiltModel:
    """Return the model of ``config`` on ``device``."""
    train = data.train
    build = functools.partial(
        build_model,
        config.task,
        labels=data.labels,
        image_size=config.data.image_size if isinstance(train, BoxSplit) else _side(train),
        normalize=config.data.normalize,
        pad_id=train.pad_id if isinstance(train, TextSplit) else None,
        seed=config.seed,
    )
    model = build(config.model)
    initialize(model, config.model, config.seed, build)
    if config.model.lora_rank is not None:
        add_lora(model, config.model, config.seed, _size(train))
    model.to(device)
    on_tensor_cores = device.type == "cuda" and is_reduced(config.training.precision, device)
    if on_tensor_cores and isinstance(train, ImageSplit):
        model.lay_channels_last()
    model.writing = writing_of(config)
    if config.data.packing and isinstance(train, TextSplit):
        check_packing(model, train, config.model.name)
    if config.training.gradient_checkpointing:
        rematerialize(model)
    return model


def _portion(model: BuiltModel, asked: int | None) -> Portion:
    return Portion(limit=asked, in_pairs=normalizes_batches(model.module), asked=asked)


def _augmentation(config: TrialConfig) -> Augmentation:
    if not config.training.token_masking:
        return Augmentation(config.training)
    tokenizer = load_tokenizer(text_encoder(config.data, config.model).folder)
    if tokenizer.mask_token_id is None:
        raise ModelError(
            f"training.token_masking: the tokenizer of {config.model.name} has no mask token; "
            "leave it out"
        )
    special = tuple(sorted(tokenizer.all_special_ids))
    return Augmentation(config.training, tokenizer.mask_token_id, special)


def _averaging(model: BuiltModel, config: TrialConfig) -> Averaging | None:
    asked = config.training.averaging != "none"
    return Averaging(model.module, config.training) if asked else None


def _side(split: Split) -> int | None:
    """Return the side of square images in pixels; None for others."""
    height, width = _size(split) or (0, None)
    return width if height == width else None


def _size(split: Split) -> tuple[int, int] | None:
    """Return height and width of images; None for others."""
    if not isinstance(split, ImageSplit):
        return None
    height, width = split.pixels.shape[2:]
    return int(height), int(width)
