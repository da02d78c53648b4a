"""The training loss of classifiers: cross-entropy, weighted by class, or focal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.losses import share_of_loss, weight


@dataclass(frozen=True)
class ClassLoss:
    """How far logits are from class indices.

    Attributes:
        label_smoothing: share of the target that is spread over all classes.
        gamma: of the focal loss (Lin et al. 2017): each example counts ``(1 - p)^gamma`` of its
            cross-entropy, ``p`` the probability of its class.
        weights: of each class, float32 [classes]; the loss is the mean weighted with those of the
            targets, as torch's cross-entropy has it. None: all are 1.
    """

    label_smoothing: float = 0.0
    gamma: float = 0.0
    weights: Tensor | None = None

    def total(self, targets: Tensor) -> float | Tensor:
        """Return what the mean loss of ``targets`` is divided by."""
        return weight(targets) if self.weights is None else self.weights[targets].sum()

    def share(self, logits: Tensor, targets: Tensor, total: float | Tensor) -> Tensor:
        """Return what these examples add to the mean loss of their batch.

        Args:
            logits: of the examples, [b, classes].
            targets: class indices, int64 [b].
            total: that of the whole batch, these examples included.
        """
        if self.weights is None and self.gamma == 0 and isinstance(total, int):
            return share_of_loss(logits, targets, total, self.label_smoothing)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = functional.cross_entropy(
            logits,
            targets,
            weight=self.weights,
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        if self.gamma:
            missing = 1 - logits.softmax(dim=1).gather(1, targets[:, None])[:, 0]
            # At p = 1 the slope of a power below 1 would be infinite.
            losses = losses * missing.clamp_min(torch.finfo(missing.dtype).tiny) ** self.gamma
        return losses.sum() / total


def class_loss(
    training: TrainingSpec, targets: NDArray[np.int64], classes: int, device: torch.device
) -> ClassLoss | None:
    """Return the loss of ``training`` for a training split with these ``targets``.

    None where it is plain cross-entropy, which is the task's own.

    Balanced weights are ``n / (classes * count)``, a mean of 1 over the split (King and Zeng
    2001); a class without an example has the weight 0.
    """
    if training.class_weights == "none" and training.focal_gamma == 0:
        return None
    weights = None
    if training.class_weights == "balanced":
        counts = torch.from_numpy(np.bincount(targets, minlength=classes)).float()
        weights = torch.where(counts > 0, len(targets) / (classes * counts.clamp_min(1)), 0.0)
        weights = weights.to(device)
    return ClassLoss(training.label_smoothing, training.focal_gamma, weights)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return ``(KL(p||q) + KL(q||p)) / 2`` summed over the examples of two logits [b, classes].

    What R-Drop adds to the loss, for two passes with dropout (Wu et al. 2021, eq. 2).
    """
    p, q = one.float().log_softmax(dim=1), other.float().log_softmax(dim=1)
    return ((p.exp() - q.exp()) * (p - q)).sum() / 2
