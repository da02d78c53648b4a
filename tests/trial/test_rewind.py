from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sft_tune.trial.rewind import Rewind

CPU = torch.device("cpu")


class Counting(nn.Module):
    """Replaces one buffer by another tensor at every call, and sets one that was None."""

    calls: Tensor
    first: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("first", None)

    def forward(self, x: Tensor) -> Any:
        self.calls = self.calls + 1
        if self.first is None:
            self.first = x.detach()
        return self.norm(x) * torch.rand(3)


def draw() -> list[float]:
    drawn: list[float] = torch.rand(2).tolist()
    return drawn


def test_buffers_and_random_states_are_what_they_were() -> None:
    module = Counting()
    rewind = Rewind(module, CPU)
    for _ in range(3):
        rewind.mark()
        before = {name: tensor.clone() for name, tensor in module.named_buffers()}
        drawn = []
        for _ in range(2):
            module(torch.randn(4, 3))
            drawn.append(draw())
            rewind.back()
            found = dict(module.named_buffers())
            assert found.keys() == before.keys()
            assert all(torch.equal(found[name], before[name]) for name in before)
        assert drawn[0] == drawn[1]
        # The step that stays: the next mark is behind it.
        module(torch.randn(4, 3))
        draw()
        assert module.norm.num_batches_tracked == before["norm.num_batches_tracked"] + 1


def test_without_a_mark_there_is_nothing_to_go_back_to() -> None:
    module = nn.BatchNorm1d(3)
    module(torch.randn(4, 3))
    before = module.running_mean.clone()
    Rewind(module, CPU).back()
    assert torch.equal(module.running_mean, before)


def test_a_mark_does_not_touch_what_is_marked() -> None:
    module = nn.BatchNorm1d(3)
    rewind = Rewind(module, CPU)
    torch.manual_seed(1)
    rewind.mark()
    rewind.mark()
    found = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(found, torch.rand(3))
    assert torch.equal(module.running_var, torch.ones(3))


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Identity()])
def test_a_module_without_buffers_has_only_random_states(module: nn.Module) -> None:
    rewind = Rewind(module, CPU)
    rewind.mark()
    first = draw()
    rewind.back()
    assert draw() == first
