"""Batches of so many tokens: within the budget, every example once an epoch, exact, resumable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.data import prepare
from sft_tune.trial.data.token_batches import in_batches
from sft_tune.trial.plan import Plan
from sft_tune.trial.step import train_step
from sft_tune.trial.trainee import set_up
from tests.trial.data.test_bucketing import log_normal
from tests.trial.test_resume import after, check_same

Configure = Callable[..., TrialConfig]


def plan_of(
    tokens: NDArray[np.int64], budget: int, *, epochs: int = 2, bucketed: bool = True
) -> Plan:
    lengths = tokens.sum(axis=1) if bucketed else None
    return Plan(
        *(len(tokens), 32, epochs, 1, 3),
        lengths=lengths,
        batch_tokens=budget,
        tokens=tokens,
    )


def epochs_of(plan: Plan) -> list[list[NDArray[np.int64]]]:
    per = plan.steps_per_epoch
    return [[plan.indices(e * per + i).numpy() for i in range(per)] for e in range(plan.epochs)]


def padded(batch: NDArray[np.int64], tokens: NDArray[np.int64]) -> int:
    return len(batch) * int(tokens[batch].max(axis=0).sum())


@given(
    lengths=st.lists(st.tuples(st.integers(1, 100), st.integers(0, 20)), min_size=1, max_size=200),
    budget=st.integers(120, 2000),
    bucketed=st.booleans(),
    texts=st.sampled_from([1, 2]),
)
def test_each_example_comes_once_an_epoch_and_no_batch_is_over_the_budget(
    lengths: list[tuple[int, int]], budget: int, bucketed: bool, texts: int
) -> None:
    tokens = np.array(lengths)[:, :texts]
    plan = plan_of(tokens, budget, epochs=3, bucketed=bucketed)
    for batches in epochs_of(plan):
        assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
        assert all(0 < padded(batch, tokens) <= budget for batch in batches)
    assert plan.horizon == 3 * plan.steps_per_epoch


def test_a_text_that_is_longer_is_a_batch_by_itself() -> None:
    plan = plan_of(np.array([[5], [50], [6], [7]]), 20)
    assert {len(b) for b in epochs_of(plan)[0] if 1 in b} == {1}


def test_hardly_anything_is_padding_and_batches_differ_from_epoch_to_epoch() -> None:
    tokens = log_normal(4000)[:, None]
    plan = plan_of(tokens, 2048)
    first, second = epochs_of(plan)
    for batches in (first, second):
        assert sum(padded(batch, tokens) for batch in batches) < 1.12 * tokens.sum()
        # As full as whole examples let them be, but for those that were halved.
        assert len(batches) < 1.15 * tokens.sum() / 2048
    sizes = [len(batch) for batch in first]
    assert max(sizes) > 5 * min(sizes)
    shared = {frozenset(b.tolist()) for b in first} & {frozenset(b.tolist()) for b in second}
    assert not shared
    # Long and short ones come mixed.
    means = [tokens[batch].mean() for batch in first]
    assert abs(np.corrcoef(range(len(means)), means)[0, 1]) < 0.3


def test_more_batches_are_made_of_the_largest() -> None:
    found = in_batches([np.arange(2), np.arange(10, 17)], 4)
    assert [part.tolist() for part in found] == [[0, 1], [10, 11], [12, 13], [14, 15, 16]]
    with pytest.raises(ValueError, match="cannot be 4 batches"):
        in_batches([np.arange(3)], 4)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_step_goes_down_the_mean_loss_of_its_examples(
    sentences: Configure, tmp_path: Any, micro_batch: int | None
) -> None:
    training = {"batch_tokens": 40, "optimizer": "sgd", "momentum": 0.0, "clip_norm": None}
    config = sentences(
        model={"dropout": 0.0},
        training={**training, "micro_batch": micro_batch, "warmup": 0.0, "weight_decay": 0.0},
    )
    data = prepare(config.task, config.data, config.model, cache=tmp_path)
    trainee = set_up(config, data, torch.device("cpu"))
    sizes = {len(trainee.plan.indices(step)) for step in range(trainee.plan.steps_per_epoch)}
    assert len(sizes) > 1
    module: Any = trainee.model.module
    for part in module.modules():  # that of attention, too
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    for step in range(trainee.plan.steps_per_epoch):
        rows = trainee.plan.indices(step).numpy()
        module.zero_grad()
        split: Any = data.train
        # Each text alone, so without padding.
        losses = []
        for row in rows:
            ids = split.tokens[split.offsets[row] : split.offsets[row + 1]]
            logits = module(input_ids=torch.tensor(ids, dtype=torch.long)[None]).logits
            losses.append(functional.cross_entropy(logits, torch.tensor([split.targets[row]])))
        mean = torch.stack(losses).mean()
        mean.backward()
        expected = {
            name: p.detach() - trainee.learning_rate(step) * p.grad
            for name, p in module.named_parameters()
            if p.grad is not None
        }
        module.zero_grad()
        loss, _, size = train_step(trainee, step)
        assert size == len(rows) and loss.item() == pytest.approx(mean.item(), rel=1e-5)
        for name, p in module.named_parameters():
            if name in expected:
                torch.testing.assert_close(p.detach(), expected[name], rtol=1e-4, atol=1e-6)


def test_rungs_average_over_examples_and_count_them(new_runner: Any, sentences: Configure) -> None:
    runner = new_runner("one")
    outcome = runner.run(sentences(training={"batch_tokens": 40}, objective={"rungs": 2}))
    assert outcome.reason == "completed" and outcome.flags == {}
    assert [e.epoch for e in runner.evaluations] == [1.0, 2.0]
    assert outcome.samples_per_second > 0


def test_a_trial_stopped_at_every_step_is_the_same_trial(
    new_runner: Any, sentences: Configure
) -> None:
    config = sentences(training={"batch_tokens": 40})
    calm, disturbed = new_runner("calm"), new_runner("disturbed")
    horizon = calm.run(config).horizon
    for at in range(horizon):
        outcome = disturbed.run(config, should_stop=after(min(at, 1)), checkpoint_seconds=1e9)
        assert outcome.steps == at
    disturbed.run(config)
    check_same(disturbed, calm)
