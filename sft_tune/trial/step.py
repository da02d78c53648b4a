"""One optimizer step, and all that it works on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import Batch, ImageSplit, Prepared, Split, TextSplit, gather
from sft_tune.trial.device import autocast, free_memory, is_out_of_memory, resolve_precision
from sft_tune.trial.heads import freeze_backbone, normalizes_batches, set_training_mode
from sft_tune.trial.models import BuiltModel, build_model
from sft_tune.trial.optimizers import (
    add_l1,
    build_optimizer,
    set_learning_rate,
    trained_parameters,
)
from sft_tune.trial.plan import Plan
from sft_tune.trial.portions import Portion, within_memory
from sft_tune.trial.rewind import Rewind
from sft_tune.trial.schedules import learning_rate
from sft_tune.trial.seeding import seed_everything
from sft_tune.trial.tasks import task_of


@dataclass
class Trainee:
    """A configuration made concrete: data, model, optimizer, plan, on one device.

    ``portion`` is how much of a batch goes through the model at once, ``rewind`` what takes back
    a try at a step that ran out of memory.
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

    @property
    def frozen(self) -> bool:
        """Whether only the head is trained."""
        return self.config.training.freeze == "backbone"

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step ``step``."""
        plan = self.plan
        return learning_rate(self.config.training, step, plan.horizon, plan.steps_per_epoch)

    def set_training_mode(self) -> None:
        """Set the module to training, a frozen backbone to evaluation."""
        set_training_mode(self.model.module, self.model.head, self.frozen)


def make_plan(config: TrialConfig, data: Prepared) -> Plan:
    """Return the course of a trial of ``config`` over ``data``."""
    training = config.training
    return Plan(
        examples=len(data.train),
        batch_size=training.batch_size,
        epochs=training.epochs,
        rung_count=config.objective.rungs,
        seed=config.seed,
    )


def set_up(config: TrialConfig, data: Prepared, device: torch.device) -> Trainee:
    """Return the trainee of ``config`` before its first step, every random state seeded.

    Raises:
        ModelError: for a model or weights that are unknown, cannot be had, or do not fit.
    """
    train = data.train
    model = build_model(
        config.task,
        config.model,
        data.labels,
        image_size=_side(train),
        normalize=config.data.normalize,
        pad_id=train.pad_id if isinstance(train, TextSplit) else None,
        seed=config.seed,
    )
    if config.training.freeze == "backbone":
        freeze_backbone(model.module, model.head)
    model.to(device)
    dtype = resolve_precision(config.training.precision, device)
    set_training_mode(model.module, model.head, config.training.freeze == "backbone")
    # What is drawn while training does not depend on how much the model's making has drawn.
    seed_everything(config.seed)
    return Trainee(
        config=config,
        data=data,
        plan=make_plan(config, data),
        model=model,
        optimizer=build_optimizer(model, config.training),
        scaler=torch.GradScaler(device.type, enabled=dtype is torch.float16),
        device=device,
        dtype=dtype,
        portion=Portion(in_pairs=normalizes_batches(model.module)),
        rewind=Rewind(model.module, device),
    )


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
    norm = _clip(optimizer, trainee.config.training.clip_norm)
    set_learning_rate(optimizer, trainee.learning_rate(step))
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm, len(indices)


def _gathered(trainee: Trainee, indices: Tensor) -> Batch:
    """Return the batch, in the machine's memory where only parts of it fit on the device."""
    options: dict[str, Any] = {
        "augment": trainee.config.training.augment,
        "normalize": trainee.model.normalize,
    }
    try:
        return gather(trainee.data.train, indices, trainee.device, **options)
    except RuntimeError as error:
        if trainee.device.type == "cpu" or not is_out_of_memory(error):
            raise
    free_memory(trainee.device)
    trainee.rewind.back()
    return gather(trainee.data.train, indices, "cpu", **options)


def _backward(trainee: Trainee, batch: Batch, sizes: list[int]) -> Tensor:
    """Add up the batch's gradient over parts of ``sizes``; return its mean loss, detached."""
    task = task_of(trainee.config.task, trainee.config.data)
    total, losses = task.weight(batch), []
    for part in _parts(batch, sizes, trainee.device):
        with autocast(trainee.device, trainee.dtype):
            logits = trainee.model.logits(part.inputs)
        loss = task.share_of_loss(logits, part, total, trainee.config.training)
        trainee.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _parts(batch: Batch, sizes: list[int], device: torch.device) -> Iterator[Batch]:
    """Yield the batch in parts of ``sizes``, each brought to ``device`` when its turn comes."""
    if len(sizes) == 1 and batch.targets.device == device:
        yield batch
        return
    inputs = {name: tensor.split_with_sizes(sizes) for name, tensor in batch.inputs.items()}
    for i, targets in enumerate(batch.targets.split_with_sizes(sizes)):
        yield Batch({name: part[i].to(device) for name, part in inputs.items()}, targets.to(device))


def _side(split: Split) -> int | None:
    """Return the side of square images in pixels; None for texts and other images."""
    if not isinstance(split, ImageSplit):
        return None
    height, width = split.pixels.shape[2:]
    return int(width) if height == width else None


def _clip(optimizer: Optimizer, limit: float | None) -> Tensor:
    """Scale the gradients down to the norm ``limit`` together; return their norm before."""
    parameters = trained_parameters(optimizer)
    if limit is not None:
        return clip_grad_norm_(parameters, limit)
    return get_total_norm([p.grad for p in parameters if p.grad is not None])
