"""How far a step moves the weights, against the whole computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sft_tune.trial import updates
from sft_tune.trial.updates import UpdateRatio


def stepped(width: int = 40) -> tuple[torch.Tensor | None, float]:
    """Return the ratio of a step as it is measured, and computed over all weights."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(7, width), nn.Linear(width, 3))
    frozen = nn.Parameter(torch.ones(1000), requires_grad=False)
    groups = [{"params": list(layers.parameters()), "lr": 0.1}, {"params": [frozen], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups)
    layers(torch.ones(2, 7)).square().sum().backward()
    then = torch.cat([p.detach().flatten().clone() for p in layers.parameters()])
    ratio = UpdateRatio(10, [10])
    before = ratio.before(optimizer, 9)
    optimizer.step()
    now = torch.cat([p.detach().flatten() for p in layers.parameters()])
    return ratio.after(before), float((now - then).norm() / then.norm())


def test_the_ratio_is_that_of_the_norms() -> None:
    measured, whole = stepped()
    assert measured is not None and float(measured) == pytest.approx(whole, rel=1e-6)


def test_of_many_weights_a_sample_is_near_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "MOST_NUMBERS", 800)
    measured, whole = stepped(width=4000)
    assert measured is not None and float(measured) == pytest.approx(whole, rel=0.25)


def test_few_steps_are_measured_and_the_last_before_each_rung() -> None:
    ratio = UpdateRatio(1000, range(100, 1001, 100))
    due = [step for step in range(1000) if ratio.is_due(step)]
    assert {99, 199, 999} <= set(due)
    assert len(due) == 50
    short = UpdateRatio(3, [1, 2, 3])
    assert [short.is_due(step) for step in range(3)] == [True] * 3


def test_a_step_that_is_not_measured_copies_nothing() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    ratio = UpdateRatio(1000, [1000])
    assert ratio.before(optimizer, 7) is None
    assert ratio.after(None) is None
