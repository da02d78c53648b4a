"""One optimizer step: passes forward and backward in parts that fit, then the update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, get_total_norm
from torch.optim import Optimizer

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.class_loss import divergence
from sft_tune.trial.data import Batch, FeatureSplit, Split, gather
from sft_tune.trial.device import autocast, free_memory, is_out_of_memory
from sft_tune.trial.lengths import in_like_lengths, longest_first, trimmed
from sft_tune.trial.mixing import mixed, sides
from sft_tune.trial.optimizers import add_l1, set_learning_rate, trained_parameters
from sft_tune.trial.portions import within_memory
from sft_tune.trial.seeding import random_states, restore_random_states
from sft_tune.trial.tasks import task_of
from sft_tune.trial.trainee import Trainee


def train_step(trainee: Trainee, step: int) -> tuple[Tensor, Tensor, int]:
    """Do optimizer step ``step``.

    A batch that does not fit into memory goes in micro-batches, in this step and those after it;
    a try that failed leaves no trace. On a CPU texts go in parts of like length. The batch is
    augmented as one and its gradient is the same up to rounding, but dropout draws other masks (on
    the CPU from the generator that augmentation draws from too), and batch norm normalizes each
    micro-batch by itself.

    Returns:
        The batch's mean loss and the norm of its gradient before clipping, both on the device,
        and the number of its examples.

    Raises:
        RuntimeError, MemoryError: when memory runs out even for one example, or for the optimizer.
    """
    optimizer, scaler = trainee.optimizer, trainee.scaler
    trainee.enter(step)
    indices = trainee.plan.indices(step)
    loss = _passes(trainee, indices)
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


class Rehearsed(NamedTuple):
    """What passes gave that were taken back.

    Attributes:
        loss: the batch's mean loss, on the device.
        norm: of its gradient, on the device.
        drew: whether random numbers were drawn on the device.
    """

    loss: Tensor
    norm: Tensor
    drew: bool


def rehearse(trainee: Trainee, step: int) -> Rehearsed:
    """Do the passes of step ``step``, and take them back: to see whether and how fast they go.

    Raises:
        RuntimeError, MemoryError: when memory runs out even for one example.
    """
    device = trainee.device
    random = random_states(device)
    before = random[0]["cuda" if device.type == "cuda" else "torch"]
    try:
        loss = _passes(trainee, trainee.plan.indices(step))
        after = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
        return Rehearsed(loss, _norm(trainee.optimizer), not torch.equal(before, after))
    finally:
        _undo(trainee)
        restore_random_states(*random, trainee.device)


def _passes(trainee: Trainee, indices: Tensor) -> Tensor:
    """Add up the gradient of the batch ``indices``; return its mean loss.

    Where a compiled module fails the module itself does the step, and those after it.
    """
    compiled = trainee.model.compiled
    try:
        return _in_portions(trainee, indices)
    except Exception as error:
        if compiled is None or (is_out_of_memory(error) and not compiled.whole_batches):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
    # Here the error is gone, and with it what its frames hold of the device's memory.
    _undo(trainee)
    trainee.model.compiled = None
    compiled.close()
    loss = _in_portions(trainee, indices)  # an error of the module's own is raised again
    compiled.failed(why)
    return loss


def _in_portions(trainee: Trainee, indices: Tensor) -> Tensor:
    """Add up the gradient of the batch ``indices`` in parts that fit; return its mean loss."""
    if _may_be_cut(trainee):
        indices = longest_first(_training(trainee), indices, trainee.device)
    trainee.rewind.mark()
    if trainee.model.compiled is not None and trainee.model.compiled.whole_batches:
        return _backward(trainee, indices, [len(indices)])
    return within_memory(
        trainee.portion,
        len(indices),
        lambda sizes: _backward(trainee, indices, sizes),
        device=trainee.device,
        undo=lambda: _undo(trainee),
    )


def _undo(trainee: Trainee) -> None:
    trainee.optimizer.zero_grad(set_to_none=True)
    trainee.rewind.back()


def _may_be_cut(trainee: Trainee) -> bool:
    """Tell whether texts may go in parts of like length.

    Batch norm would normalize each part by itself, and a compiled module is made for few shapes.
    Where the head alone is trained its dropout is to draw what it draws on kept features.
    """
    whole = trainee.portion.in_pairs or trainee.freezing.only_head
    return not whole and trainee.model.compiled is None


def _training(trainee: Trainee) -> Split | FeatureSplit:
    """Return what is trained on: examples, or their features where these are known."""
    return trainee.features.get("train", trainee.data.train)


def _clip(optimizer: Optimizer, training: TrainingSpec) -> Tensor:
    """Clip the gradients by value, then by their norm together; return their norm before."""
    parameters = trained_parameters(optimizer)
    if training.clip_value is None and training.clip_norm is not None:
        return clip_grad_norm_(parameters, training.clip_norm)
    norm = _norm(optimizer)
    if training.clip_value is not None:
        clip_grad_value_(parameters, training.clip_value)
        if training.clip_norm is not None:
            clip_grad_norm_(parameters, training.clip_norm)
    return norm


def _norm(optimizer: Optimizer) -> Tensor:
    parameters = trained_parameters(optimizer)
    return get_total_norm([p.grad for p in parameters if p.grad is not None])


def _gathered(trainee: Trainee, indices: Tensor) -> Batch:
    """Return the batch, in the machine's memory where only parts of it fit on the device."""
    options: dict[str, Any] = {
        "augment": trainee.config.training.augment,
        "beyond": trainee.augmentation,
        "normalize": trainee.model.normalize,
    }
    training = trainee.config.training
    split = _training(trainee)
    try:
        return mixed(gather(split, indices, trainee.device, **options), training)
    except RuntimeError as error:
        if trainee.device.type == "cpu" or not is_out_of_memory(error):
            raise
    free_memory(trainee.device)
    trainee.rewind.back()
    return mixed(gather(split, indices, "cpu", **options), training)


def _backward(trainee: Trainee, indices: Tensor, sizes: list[int]) -> Tensor:
    """Add up a batch's gradient over parts of ``sizes``; return its mean loss, detached."""
    batch, split = _gathered(trainee, indices), _training(trainee)
    if _may_be_cut(trainee):
        sizes = in_like_lengths(split, indices, sizes, trainee.device, trainee.model.module)
    parts = _parts(batch, sizes, trainee.device)
    if _may_be_cut(trainee):
        parts = trimmed(split, parts)
    totals, losses = _totals(trainee, batch), []
    for part in parts:
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
