"""One optimizer step, and all that it works on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import Optimizer

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import ImageSplit, Prepared, Split, TextSplit, gather
from sft_tune.trial.device import autocast, resolve_precision
from sft_tune.trial.heads import freeze_backbone, set_training_mode
from sft_tune.trial.models import BuiltModel, build_model
from sft_tune.trial.optimizers import build_optimizer, set_learning_rate, trained_parameters
from sft_tune.trial.plan import Plan
from sft_tune.trial.schedules import learning_rate
from sft_tune.trial.seeding import seed_everything


@dataclass
class Trainee:
    """A configuration made concrete: data, model, optimizer, plan, on one device."""

    config: TrialConfig
    data: Prepared
    plan: Plan
    model: BuiltModel
    optimizer: Optimizer
    scaler: torch.GradScaler
    device: torch.device
    dtype: torch.dtype

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
    )


def train_step(trainee: Trainee, step: int) -> tuple[Tensor, Tensor, int]:
    """Do optimizer step ``step``.

    Returns:
        The batch's mean loss and the norm of its gradient before clipping, both on the device,
        and the number of its examples.
    """
    training, optimizer, scaler = trainee.config.training, trainee.optimizer, trainee.scaler
    batch = gather(
        trainee.data.train,
        trainee.plan.indices(step),
        trainee.device,
        augment=training.augment,
        normalize=trainee.model.normalize,
    )
    with autocast(trainee.device, trainee.dtype):
        logits = trainee.model.logits(batch.inputs)
    loss = functional.cross_entropy(
        logits.float(), batch.targets, label_smoothing=training.label_smoothing
    )
    scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    scaler.unscale_(optimizer)
    norm = _clip(optimizer, training.clip_norm)
    set_learning_rate(optimizer, trainee.learning_rate(step))
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm, len(batch.targets)


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
