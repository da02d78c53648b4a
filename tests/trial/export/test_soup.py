"""Greedy soups, of trials and of weights made up so that the right recipe is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint
from sft_tune.trial.export.soup import Candidate, average, cook
from sft_tune.trial.load import load_checkpoint
from tests.trial.conftest import Configure, Runner

Cook = Callable[..., dict[str, Any]]


@pytest.fixture
def trained(runner: Runner, digits: Configure, tmp_path: Path) -> Candidate:
    """A trial whose weights pass for fine-tuned ones of a file."""
    scratch = digits(training={"epochs": 4, "augment": "none", "learning_rate": 0.01})
    outcome = runner.run(scratch)
    assert outcome.metrics["loss"] < 1.2
    named = scratch.model.model_copy(update={"weights": str(tmp_path / "trial/best.safetensors")})
    config = scratch.model_copy(update={"model": named})
    config = config.model_copy(
        update={"objective": config.objective.model_copy(update={"metric": "loss"})}
    )
    return Candidate(0, runner.paths.best, config)


@pytest.fixture
def cook_at(runner: Runner, tmp_path: Path) -> Cook:
    def cooked(*candidates: Candidate) -> dict[str, Any]:
        target = tmp_path / "soup.safetensors"
        return cook(candidates, target, device="cpu", cache=runner.cache, batch_size=16)

    return cooked


def shifted(base: Candidate, number: int, by: float, **config: Any) -> Candidate:
    """Return the candidate with noise of its own: ``by`` and ``-by`` cancel out."""
    tensors, header = checkpoint.read(base.path)
    noise = torch.Generator().manual_seed(1)
    moved = {
        name: tensor + by * torch.randn(tensor.shape, generator=noise)
        if tensor.is_floating_point() and "running" not in name
        else tensor
        for name, tensor in tensors.items()
    }
    path = base.path.with_name(f"{number}.safetensors")
    checkpoint.write(path, moved, header)
    changed = TrialConfig.model_validate({**base.config.model_dump(), **config})
    return Candidate(number, path, changed)


def test_weights_on_both_sides_of_a_good_point_make_a_better_soup(
    trained: Candidate, cook_at: Cook, tmp_path: Path
) -> None:
    left, right = shifted(trained, 1, 0.1), shifted(trained, 2, -0.1)
    far = shifted(trained, 3, 3.0)
    found = cook_at(left, far, right)
    assert found["ingredients"] == [1, 2]
    assert [one["number"] for one in found["tried"]] == [3, 2]
    assert [one["why"] for one in found["tried"]] == ["validation does not gain", None]
    assert found["tried"][1]["value"] == found["metrics"]["loss"]
    alone = cook_at(left)
    assert alone["metrics"]["loss"] > found["metrics"]["loss"]

    # The noise has cancelled out: it is the point itself.
    cook_at(left, far, right)
    soup, header = checkpoint.read(tmp_path / "soup.safetensors")
    own, _ = checkpoint.read(trained.path)
    for name, tensor in own.items():
        torch.testing.assert_close(soup[name], tensor, atol=1e-6, rtol=1e-5)
    assert header["metrics"] == found["metrics"]
    assert load_checkpoint(tmp_path / "soup.safetensors").labels == ("0", "1", "2", "3")


def test_where_nothing_gains_there_is_no_soup(
    trained: Candidate, cook_at: Cook, tmp_path: Path
) -> None:
    """Equal weights gain nothing: `strictly` better is asked for."""
    found = cook_at(trained, shifted(trained, 1, 0.0), shifted(trained, 2, 3.0))
    assert found["ingredients"] == [0]
    assert [one["why"] for one in found["tried"]] == ["validation does not gain"] * 2
    assert not (tmp_path / "soup.safetensors").exists()


def test_what_has_no_meaning_is_not_averaged(trained: Candidate, cook_at: Cook) -> None:
    model = trained.config.model.model_dump()
    other = shifted(trained, 1, 0.1, model={**model, "weights": "/other.safetensors"})
    tensors, header = checkpoint.read(trained.path)
    narrow = trained.path.with_name("narrow.safetensors")
    checkpoint.write(narrow, {**tensors, "stem.weight": tensors["stem.weight"][:8]}, header)
    relabelled = trained.path.with_name("relabelled.safetensors")
    card = {**header["card"], "labels": ["x"]}
    checkpoint.write(relabelled, tensors, {**header, "card": card})
    found = cook_at(
        trained,
        other,
        Candidate(2, narrow, trained.config),
        Candidate(3, relabelled, trained.config),
    )
    assert found["ingredients"] == [0]
    assert [one["why"] for one in found["tried"]] == [
        "another pretrained model",
        "another architecture",
        "other labels or images",
    ]
    scratch = TrialConfig.model_validate(
        {**trained.config.model_dump(), "model": {**model, "weights": "none"}}
    )
    apart = cook_at(trained._replace(config=scratch), Candidate(4, trained.path, scratch))
    assert apart["tried"][0]["why"] == "trained from scratch"


def test_the_average_of_so_many_is_their_mean() -> None:
    models = [{"w": torch.tensor([float(i), 2.0]), "n": torch.tensor(i)} for i in range(4)]
    mean: Any = models[0]
    for count, other in enumerate(models[1:], start=1):
        mean = average(mean, other, count)
    torch.testing.assert_close(mean["w"], torch.tensor([1.5, 2.0]))
    assert mean["n"] == 0


def test_weights_that_are_gone_are_an_error_with_the_trials_number(
    trained: Candidate, cook_at: Cook
) -> None:
    with pytest.raises(ModelError, match="the weights of trial 7: .*no checkpoint"):
        cook_at(trained, Candidate(7, trained.path.with_name("no"), trained.config))
