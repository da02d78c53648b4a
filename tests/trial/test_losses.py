"""The shares of a loss against torch's mean over the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sft_tune.trial.losses import IGNORED, share_of_loss, weight


def gradient(logits: Tensor, targets: Tensor, sizes: list[int], smoothing: float) -> Tensor:
    logits = logits.clone().requires_grad_()
    total = weight(targets)
    for part, labels in zip(
        logits.split_with_sizes(sizes), targets.split_with_sizes(sizes), strict=True
    ):
        share_of_loss(part, labels, total, smoothing).backward()
    assert logits.grad is not None
    return logits.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("sizes", [[7], [4, 3], [3, 3, 1], [1] * 7, [6, 1]])
def test_shares_add_up_to_the_mean(sizes: list[int], smoothing: float) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 5, dtype=torch.float64), torch.randint(0, 5, (7,))
    whole = logits.clone().requires_grad_()
    functional.cross_entropy(whole, targets, label_smoothing=smoothing).backward()
    found = gradient(logits, targets, sizes, smoothing)
    assert torch.allclose(found, whole.grad, rtol=1e-13, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("sizes", [[4], [3, 1], [2, 2], [1] * 4])
def test_tokens_count_alike_whatever_text_they_are_in(sizes: list[int], smoothing: float) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 5, 9, dtype=torch.float64), torch.randint(0, 5, (4, 9))
    for row, length in enumerate((9, 2, 0, 5)):
        targets[row, length:] = IGNORED
    assert weight(targets) == 16
    whole = logits.clone().requires_grad_()
    functional.cross_entropy(whole, targets, label_smoothing=smoothing).backward()
    found = gradient(logits, targets, sizes, smoothing)
    assert torch.allclose(found, whole.grad, rtol=1e-13, atol=0)
    assert not found[2].any()


def test_half_precision_is_added_up_in_single() -> None:
    logits, targets = torch.randn(3, 5).bfloat16(), torch.tensor([0, 1, 2])
    assert share_of_loss(logits, targets, 6, 0.0).dtype is torch.float32
