"""One optimizer step, and all that it works on."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from torch.optim import Optimizer

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.averaging import Averaging, refresh_statistics
from sft_tune.trial.class_loss import ClassLoss, class_loss, divergence
from sft_tune.trial.data import (
    AudioSplit,
    Batch,
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
from sft_tune.trial.data.subset import Subset, early_subset
from sft_tune.trial.data.text import load_tokenizer, text_encoder
from sft_tune.trial.device import autocast, free_memory, is_out_of_memory, resolve_precision
from sft_tune.trial.freezing import Freezing
from sft_tune.trial.heads import normalizes_batches
from sft_tune.trial.initialize import initialize
from sft_tune.trial.lora import add_lora
from sft_tune.trial.mixing import mixed, sides
from sft_tune.trial.models import BuiltModel, build_model
from sft_tune.trial.models_language import check_packing, writing_of
from sft_tune.trial.optimizers import (
    add_l1,
    build_optimizer,
    set_learning_rate,
    trained_parameters,
)
from sft_tune.trial.plan import Plan
from sft_tune.trial.portions import Portion, within_memory
from sft_tune.trial.rematerialize import rematerialize
from sft_tune.trial.rewind import Rewind
from sft_tune.trial.schedules import at_progress, learning_rate
from sft_tune.trial.seeding import random_states, restore_random_states, seed_everything
from sft_tune.trial.tasks import task_of

# As many as give steady statistics of batch norm; a pass over all would cost an epoch a rung.
STATISTICS_EXAMPLES = 2048


@dataclass
class Trainee:
    """A configuration made concrete: data, model, optimizer, plan, on one device.

    ``portion`` is how much of a batch goes through the model at once, ``rewind`` what takes back
    a try at a step that ran out of memory, ``freezing`` what is trained when, ``averaging`` the
    average of the weights where one is asked for, ``features`` those of a frozen backbone by split
    where they are known: then only the head is run. ``subset`` is what early rungs are evaluated
    on; None: on all of validation.
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

    def enter(self, step: int) -> None:
        """Open the parameters that step ``step`` trains."""
        if self.freezing.enter(step / self.plan.horizon):
            self.portion.in_pairs = normalizes_batches(self.model.module)

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
        rung_count=config.objective.rungs,
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
    model = _model(config, data, device) if made is None else made
    train = data.train
    freezing = Freezing(model.module, model.blocks, config.training)
    optimizer = build_optimizer(model, config.training)
    freezing.enter(0.0)
    freezing.set_training_mode()
    dtype = resolve_precision(config.training.precision, device)
    # What is drawn while training does not depend on how much the model's making has drawn.
    seed_everything(config.seed)
    return Trainee(
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
    model.writing = writing_of(config)
    if config.data.packing and isinstance(train, TextSplit):
        check_packing(model, train, config.model.name)
    if config.training.gradient_checkpointing:
        rematerialize(model)
    return model


def train_step(trainee: Trainee, step: int) -> tuple[Tensor, Tensor, int]:
    """Do optimizer step ``step``.

    A batch that does not fit into memory goes in micro-batches, in this step and those after it;
    a try that failed leaves no trace. The batch is augmented as one and its gradient is the same
    up to rounding, but dropout draws other masks (on the CPU from the generator that augmentation
    draws from too), and batch norm normalizes each micro-batch by itself.

    Returns:
        The batch's mean loss and the norm of its gradient before clipping, both on the device,
        and the number of its examples.

    Raises:
        RuntimeError, MemoryError: when memory runs out even for one example, or for the optimizer.
    """
    optimizer, scaler = trainee.optimizer, trainee.scaler
    trainee.enter(step)
    indices = trainee.plan.indices(step)

    def undo() -> None:
        optimizer.zero_grad(set_to_none=True)
        trainee.rewind.back()

    trainee.rewind.mark()
    loss = within_memory(
        trainee.portion,
        len(indices),
        lambda sizes: _backward(trainee, _gathered(trainee, indices), sizes),
        device=trainee.device,
        undo=undo,
    )
    scaler.unscale_(optimizer)
    add_l1(optimizer)
    norm = _clip(optimizer, trainee.config.training)
    set_learning_rate(optimizer, trainee.learning_rate(step))
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if trainee.averaging is not None:
        trainee.averaging.update((step + 1) / trainee.plan.horizon)
    return loss, norm, len(indices)


def rehearse(trainee: Trainee, step: int) -> None:
    """Do the passes of step ``step``, and take them back: to see whether and how fast they go.

    Raises:
        RuntimeError, MemoryError: when memory runs out even for one example.
    """
    indices = trainee.plan.indices(step)

    def undo() -> None:
        trainee.optimizer.zero_grad(set_to_none=True)
        trainee.rewind.back()

    random = random_states(trainee.device)
    trainee.rewind.mark()
    try:
        within_memory(
            trainee.portion,
            len(indices),
            lambda sizes: _backward(trainee, _gathered(trainee, indices), sizes),
            device=trainee.device,
            undo=undo,
        )
    finally:
        undo()
        restore_random_states(*random, trainee.device)


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


def _gathered(trainee: Trainee, indices: Tensor) -> Batch:
    """Return the batch, in the machine's memory where only parts of it fit on the device."""
    options: dict[str, Any] = {
        "augment": trainee.config.training.augment,
        "beyond": trainee.augmentation,
        "normalize": trainee.model.normalize,
    }
    training = trainee.config.training
    split = trainee.features.get("train", trainee.data.train)
    try:
        return mixed(gather(split, indices, trainee.device, **options), training)
    except RuntimeError as error:
        if trainee.device.type == "cpu" or not is_out_of_memory(error):
            raise
    free_memory(trainee.device)
    trainee.rewind.back()
    return mixed(gather(split, indices, "cpu", **options), training)


def _backward(trainee: Trainee, batch: Batch, sizes: list[int]) -> Tensor:
    """Add up the batch's gradient over parts of ``sizes``; return its mean loss, detached."""
    totals, losses = _totals(trainee, batch), []
    for part in _parts(batch, sizes, trainee.device):
        loss = _loss(trainee, part, totals, len(batch))
        trainee.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _totals(trainee: Trainee, batch: Batch) -> list[float | Tensor]:
    """Return what the mean losses of the batch's targets, and of its partners', are divided by."""
    if trainee.loss is None:
        weight = task_of(trainee.config.task, trainee.config.data).weight
        return [weight(side) for side in sides(batch)]
    return [trainee.loss.total(side.targets.to(trainee.device)) for side in sides(batch)]


def _share(trainee: Trainee, outputs: Any, part: Batch, total: Any) -> Tensor:
    """Return what ``part`` adds to the mean loss of a batch whose losses are divided by ``total``.

    Where a technique of classifiers is asked for it stands in for the task's own loss.
    """
    if trainee.loss is not None:
        return trainee.loss.share(outputs, part.targets, total)
    training = trainee.config.training
    task = task_of(trainee.config.task, trainee.config.data)
    return task.share_of_loss(outputs, part, total, training)


def _loss(trainee: Trainee, part: Batch, totals: Sequence[Any], count: int) -> Tensor:
    """Return what ``part`` adds to the mean loss of its batch of ``count`` examples."""
    weight = trainee.config.training.r_drop
    passes: list[Any] = []
    # R-Drop compares two passes, which differ by what dropout draws.
    for _ in range(2 if weight else 1):
        with autocast(trainee.device, trainee.dtype):
            passes.append(trainee.model.outputs(part.inputs))
    losses = []
    for outputs in passes:
        both = zip(sides(part), totals, strict=True)
        shares = [_share(trainee, outputs, side, total) for side, total in both]
        mixed_share = part.share * shares[0] + (1 - part.share) * shares[1] if shares[1:] else None
        losses.append(shares[0] if mixed_share is None else mixed_share)
    if not weight:
        return losses[0]
    return (losses[0] + losses[1]) / 2 + weight * divergence(*passes) / count


def _parts(batch: Batch, sizes: list[int], device: torch.device) -> Iterator[Batch]:
    """Yield the batch in parts of ``sizes``, each brought to ``device`` when its turn comes."""
    if len(sizes) == 1 and batch.targets.device == device:
        yield batch
        return
    inputs = {name: tensor.split_with_sizes(sizes) for name, tensor in batch.inputs.items()}
    partners = None if batch.partners is None else batch.partners.split_with_sizes(sizes)
    for i, targets in enumerate(batch.targets.split_with_sizes(sizes)):
        yield Batch(
            {name: part[i].to(device) for name, part in inputs.items()},
            targets.to(device),
            None if partners is None else partners[i].to(device),
            batch.share,
        )


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


def _clip(optimizer: Optimizer, training: TrainingSpec) -> Tensor:
    """Clip the gradients by value, then by their norm together; return their norm before."""
    parameters = trained_parameters(optimizer)
    if training.clip_value is None and training.clip_norm is not None:
        return clip_grad_norm_(parameters, training.clip_norm)
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if training.clip_value is not None:
        clip_grad_value_(parameters, training.clip_value)
        if training.clip_norm is not None:
            clip_grad_norm_(parameters, training.clip_norm)
    return norm
