"""Calling torchvision's detectors: their losses on a batch, what they find on each image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sft_tune.trial.data.arrays import UNTAGGED

# A row that stands for nothing found; real scores are not below 0.
NOTHING = -1.0
# For torchvision 0 is the background.
FIRST_LABEL = 1


def answer(module: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a task keeps of ``inputs`` (see `Batch`).

    While gradients are recorded: its own losses of the batch, each [], as torchvision has them.
    Else: the same losses of each image [b], and ``detections`` [b, most, 6]: left, top,
    right, bottom, score and class, `NOTHING` filled up. Images go one by one then, so that no
    number depends on which are evaluated together, and nothing is drawn from a generator.
    """
    if torch.is_grad_enabled():
        with _answering_losses(module):
            return _named(module(*_unpacked(inputs)))
    each: list[dict[str, Tensor]] = []
    for images, targets in zip(*_unpacked(inputs), strict=True):
        with _one_pass(module):
            own = _own_losses(module, [images], [targets])
            found = module([images])[0]
        each.append({**own, "detections": _packed(found, _most(module))})
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def statistics(module: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Run ``module`` over ``inputs`` as one batch; nothing is drawn from a generator."""
    _own_losses(module, *_unpacked(inputs))


def _own_losses(
    module: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    devices = [images[0].device] if images[0].is_cuda else []
    # Faster R-CNN samples the proposals that it counts: here the same ones each time.
    with _answering_losses(module), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        return _named(module(images, targets))


def _named(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"loss_{name.removeprefix('loss_')}": value for name, value in found.items()}


def _unpacked(inputs: dict[str, Tensor]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return the images and targets of ``inputs`` as torchvision takes them."""
    images = [
        pixels[:, : int(h), : int(w)]
        for pixels, (h, w) in zip(inputs["pixel_values"], inputs["sizes"].tolist(), strict=True)
    ]
    targets = []
    for boxes, labels in zip(inputs["boxes"], inputs["box_labels"], strict=True):
        there = labels != UNTAGGED
        targets.append({"boxes": boxes[there], "labels": labels[there] + FIRST_LABEL})
    return images, targets


def _packed(found: dict[str, Tensor], most: int) -> Tensor:
    """Return what was found on an image, the surest first, [most, 6]."""
    order = found["scores"].argsort(descending=True, stable=True)[:most]
    labels = found["labels"][order, None] - FIRST_LABEL
    rows = [found["boxes"][order].float(), found["scores"][order, None].float(), labels.float()]
    packed = rows[0].new_full((most, 6), NOTHING)
    packed[: len(order)] = torch.cat(rows, dim=1)
    return packed


def _most(module: Any) -> int:
    """Return how many boxes ``module`` finds on an image at most."""
    return int(getattr(module, "roi_heads", module).detections_per_img)


@contextmanager
def _answering_losses(module: nn.Module) -> Iterator[None]:
    """Let ``module`` answer with losses, whether its layers are trained or not."""
    parts = [module, *(getattr(module, name, None) for name in ("rpn", "roi_heads"))]
    there = [part for part in parts if part is not None]
    before = [part.training for part in there]
    for part in there:
        part.training = True
    try:
        yield
    finally:
        for part, training in zip(there, before, strict=True):
            part.training = training


@contextmanager
def _one_pass(module: nn.Module) -> Iterator[None]:
    """Let the backbone of ``module`` look at the images once, however often it is called."""
    backbone: Any = module.backbone
    forward = backbone.forward
    kept: list[Any] = []

    def once(images: Tensor) -> Any:
        if not kept:
            kept.append(forward(images))
        return kept[0]

    backbone.forward = once
    try:
        yield
    finally:
        del backbone.forward
