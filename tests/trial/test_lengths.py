"""Texts on a CPU: which parts a batch is cut into, and that its gradient is that of the whole."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import lengths
from sft_tune.trial.data import prepare
from sft_tune.trial.evaluate import evaluate
from sft_tune.trial.step import train_step
from sft_tune.trial.tasks import task_of
from sft_tune.trial.trainee import set_up
from tests.trial.writers import write_model

CPU = torch.device("cpu")
NEVER = 10**9
"""Tokens that no padding saves."""


def cost(texts: list[int], sizes: tuple[int, ...], pass_tokens: int) -> int:
    starts = itertools.accumulate(sizes[:-1], initial=0)
    padded = [size * texts[start] for start, size in zip(starts, sizes, strict=True)]
    return sum(padded) + len(sizes) * pass_tokens


@given(st.lists(st.integers(1, 300), min_size=1, max_size=7), st.integers(0, 300))
def test_no_other_parts_cost_less(texts: list[int], pass_tokens: int) -> None:
    texts.sort(reverse=True)
    found = lengths.least_padding(np.array(texts), pass_tokens)
    n = len(texts)
    cut = [
        tuple(np.diff([0, *places, n]).tolist())
        for count in range(n)
        for places in itertools.combinations(range(1, n), count)
    ]
    assert sum(found) == n
    least = min(cost(texts, sizes, pass_tokens) for sizes in cut)
    assert cost(texts, tuple(found), pass_tokens) == least


def test_like_lengths_stay_together_and_unlike_ones_do_not() -> None:
    assert lengths.least_padding(np.array([60, 59, 58, 57]), 32) == [4]
    assert lengths.least_padding(np.array([256, 250, 30, 29, 28, 20]), 32) == [2, 4]


def test_a_pass_costs_more_where_most_weights_are_embeddings() -> None:
    body, table = nn.Linear(10, 10, bias=False), nn.Embedding(70, 10)
    module = nn.Sequential(table, body)
    assert lengths.pass_cost(body) == lengths.PASS_TOKENS
    assert lengths.pass_cost(module) == 8 * lengths.PASS_TOKENS
    shared = nn.Embedding(70, 10)
    shared.weight = table.weight  # as encoder and decoder of T5 have one
    assert lengths.pass_cost(nn.Sequential(shared, module)) == 8 * lengths.PASS_TOKENS
    written = nn.Linear(10, 70, bias=False)
    written.weight = table.weight
    assert lengths.pass_cost(nn.Sequential(module, written)) == lengths.PASS_TOKENS
    table.requires_grad_(False)
    assert lengths.pass_cost(module) == lengths.PASS_TOKENS


@pytest.fixture(params=["classes", "labels", "tags", "gpt2", "packed", "t5"])
def config(request: pytest.FixtureRequest, tmp_path: Path, tiny_bert: Path) -> TrialConfig:
    """A configuration of texts of 1 to 12 words, dropout left out."""
    kind, draws = request.param, random.Random(0)
    model, rows = tiny_bert, []
    for i in range(48):
        words = draws.choices(["good", "bad", "film", "plot"], k=draws.choice([1, 2, 3, 12]))
        text = " ".join(words)
        rows.append(
            {
                "classes": {"text": text, "label": "ab"[i % 2]},
                # As many labels as a batch may have tokens: a target is no column of a text.
                "labels": {"text": text, "label": [f"l{k}" for k in range(5) if (i + k) % 3 == 0]},
                "tags": {"tokens": words, "ner_tags": draws.choices(["O", "B-PER"], k=len(words))},
                "t5": {"source": text, "target": text},
            }.get(kind, {"prompt": "user :", "completion": text})
        )
    if kind in ("gpt2", "packed", "t5"):
        model = tmp_path / "model"
        write_model(model, "t5" if kind == "t5" else "gpt2")
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"classes": "text-classification", "labels": "text-classification"}
    tasks |= {"tags": "token-classification", "t5": "seq2seq"}
    options = {"labels": {"multi_label": True}, "packed": {"packing": True}}.get(kind, {})
    return TrialConfig.model_validate(
        {
            "task": tasks.get(kind, "causal-lm"),
            "data": {"source": str(source), "max_length": 32, **options},
            "model": {"name": f"transformers:{model}"},
            # Shuffled: parts of one batch differ the most.
            "training": {"epochs": 2, "batch_size": 6, "batching": "random", "clip_norm": None},
            "objective": {"rungs": 1, "metric": "loss", "direction": "minimize"},
            "seed": 3,
        }
    )


def passes_of(model: nn.Module) -> list[tuple[int, int]]:
    """Return the shapes of what goes through ``model`` from here on."""
    shapes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda _, args, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def padded(shapes: list[tuple[int, int]]) -> int:
    return sum(rows * columns for rows, columns in shapes)


def trained(config: TrialConfig, cache: Path) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Return the losses and the gradients' norms of an epoch, and the shapes of all passes."""
    data = prepare(config.task, config.data, config.model, cache=cache)
    trainee = set_up(config, data, CPU)
    trainee.model.module.double()
    for part in trainee.model.module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "dropout", None), float):  # of T5's attention
            part.dropout = 0.0  # type: ignore[assignment]
    shapes = passes_of(trainee.model.module)
    trainee.set_training_mode()
    steps = [train_step(trainee, step)[:2] for step in range(trainee.plan.steps_per_epoch)]
    return [value for step in steps for value in step], shapes


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_parts_of_like_length_add_up_to_the_whole_batch(
    config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int | None
) -> None:
    found = []
    for cost_of_a_pass, limit in ((NEVER, None), (0, micro_batch)):
        monkeypatch.setattr(lengths, "PASS_TOKENS", cost_of_a_pass)
        training = config.training.model_copy(update={"micro_batch": limit})
        asked = config.model_copy(update={"training": training})
        found.append(trained(asked, tmp_path / "cache"))
    (whole, wide), (parts, cut) = found
    assert torch.allclose(torch.stack(parts), torch.stack(whole), rtol=1e-6)
    assert len(cut) > len(wide) and padded(cut) < padded(wide)
    assert max(rows for rows, _ in cut) <= (micro_batch or config.training.batch_size)


def test_an_evaluation_is_the_same_in_parts(
    config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = prepare(config.task, config.data, config.model, cache=tmp_path / "cache")
    model, task = set_up(config, data, CPU).model, task_of(config.task, config.data)
    options: dict[str, Any] = {"device": CPU, "dtype": torch.float32, "batch_size": 16}
    shapes, found = passes_of(model.module), []
    for cost_of_a_pass in (NEVER, 0):
        monkeypatch.setattr(lengths, "PASS_TOKENS", cost_of_a_pass)
        shapes.clear()
        metrics = evaluate(task, model, data.validation, ["loss"], data, **options)
        found.append((metrics["loss"], padded(shapes)))
    (whole, wide), (parts, cut) = found
    assert parts == pytest.approx(whole, rel=1e-5) and cut < wide


def test_a_stopped_trial_goes_on_bit_for_bit_in_parts(
    sentences: Any, new_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "PASS_TOKENS", 0)
    whole, broken = new_runner("whole"), new_runner("broken")
    assert whole.run(sentences()).reason == "completed"
    left = iter(range(4))
    broken.run(sentences(), should_stop=lambda: next(left, None) is None)
    assert broken.run(sentences()).resumed_from == 4
    assert broken.best()[0] == whole.best()[0]


def test_what_counts_positions_from_its_padding_is_not_cut(
    sentences: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "PASS_TOKENS", 0)
    config = sentences()
    train = prepare(config.task, config.data, config.model, cache=tmp_path / "cache").train
    left = dataclasses.replace(train, pad_left=True)
    rows = torch.arange(8)
    assert (
        len(lengths.in_like_lengths(train, lengths.longest_first(train, rows, CPU), [8], CPU)) > 1
    )
    assert torch.equal(lengths.longest_first(left, rows, CPU), rows)
    assert lengths.in_like_lengths(left, rows, [8], CPU) == [8]
    assert lengths.in_like_lengths(train, rows, [8], torch.device("cuda")) == [8]
