"""A greedy soup: the average of the weights of several trials, as long as validation gains.

Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves
accuracy without increasing inference time", ICML, section 3 (the greedy recipe).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.objective import resolve_direction
from sft_tune.trial import checkpoint
from sft_tune.trial.data import Prepared, prepare
from sft_tune.trial.device import open_device
from sft_tune.trial.export.measure import validation_metrics
from sft_tune.trial.export.write import built_model
from sft_tune.trial.load import load_checkpoint
from sft_tune.trial.models_transformers import size_arguments

# What of a checkpoint's card must be equal for an average of its weights to have a meaning.
SAME = ("labels", "stats", "image_size", "normalize")

Weights = Mapping[str, Tensor]


class Candidate(NamedTuple):
    """The checkpoint of a trial.

    Attributes:
        number: the trial's.
        path: its best weights.
        config: its configuration, with the paths of this machine.
    """

    number: int
    path: Path
    config: TrialConfig


def cook(
    candidates: Sequence[Candidate],
    target: Path,
    *,
    device: str,
    cache: Path,
    batch_size: int,
) -> dict[str, Any]:
    """Write the greedy soup of ``candidates`` to ``target``, a checkpoint like a trial's.

    The first candidate is the soup to begin with. Each next one is added where the average of
    all that are in it and this one is strictly better on validation. Floating-point tensors are
    averaged, batch-norm statistics like weights; others are those of the first.

    Args:
        candidates: the best on validation first.
        target: the file to write; not written where nothing was added.
        device: ``cpu``, or ``cuda:N``.
        cache: folder of prepared data.
        batch_size: examples per batch of evaluation.

    Returns:
        Plain values: ``ingredients`` (trial numbers), ``tried`` (for each further candidate its
        ``number``, the ``value`` of the average with it or None, and ``why`` it stayed out or
        None), and ``metrics`` of the soup on validation.

    Raises:
        ModelError: when a checkpoint is missing or damaged.
    """
    first = candidates[0]
    state = _State(first, target, device, cache, batch_size)
    sums, header = state.read(first)
    best = state.measure(sums)
    metric = first.config.objective.metric
    maximize = resolve_direction(first.config.objective) == "maximize"
    ingredients = [first.number]
    tried: list[dict[str, Any]] = []
    for candidate in candidates[1:]:
        tensors, other = state.read(candidate)
        misfit = _misfit(first, header, sums, candidate, other, tensors)
        if misfit:
            tried.append({"number": candidate.number, "value": None, "why": misfit})
            continue
        mixed = average(sums, tensors, len(ingredients))
        metrics = state.measure(mixed)
        value = metrics[metric]
        better = value > best[metric] if maximize else value < best[metric]
        why = None if better else "validation does not gain"
        tried.append({"number": candidate.number, "value": value, "why": why})
        if better:
            sums, best = mixed, metrics
            ingredients.append(candidate.number)
    if len(ingredients) > 1:
        checkpoint.write(target, sums, {**header, "value": best[metric], "metrics": best})
    else:
        target.unlink(missing_ok=True)
    return {"ingredients": ingredients, "tried": tried, "metrics": best}


def average(mean: Weights, other: Weights, count: int) -> dict[str, Tensor]:
    """Return the mean of ``count`` models, which ``mean`` is, and ``other``."""
    return {
        name: torch.lerp(tensor, other[name], 1 / (count + 1))
        if tensor.is_floating_point()
        else tensor
        for name, tensor in mean.items()
    }


class _State:
    """What measures weights: the data of the first candidate, and a file to put weights into."""

    def __init__(
        self, first: Candidate, target: Path, device: str, cache: Path, batch_size: int
    ) -> None:
        self._config = first.config
        self._header: checkpoint.Header = {}
        self._target = target
        self._device = open_device(device)
        self._batch_size = batch_size
        self._data: Prepared = prepare(
            first.config.task, first.config.data, first.config.model, cache=cache
        )

    def read(self, candidate: Candidate) -> checkpoint.Found:
        try:
            found = checkpoint.read(candidate.path)
        except (FileNotFoundError, ValueError) as error:
            raise ModelError(f"the weights of trial {candidate.number}: {error}") from error
        self._header = self._header or found[1]
        return found

    def measure(self, weights: Weights) -> dict[str, float]:
        """Return the metrics of ``weights`` on validation."""
        checkpoint.write(self._target, weights, self._header)
        module = load_checkpoint(self._target)
        card = self._header["card"]
        size = card["image_size"]
        side = size[0] if size is not None and size[0] == size[1] else None
        config = card["model_config"]
        extra = {} if config is None else size_arguments(module, side)
        built = built_model(self._config.task, module, card["normalize"], config, extra)
        return validation_metrics(built, self._config, self._data, self._device, self._batch_size)


def _misfit(
    first: Candidate,
    header: checkpoint.Header,
    tensors: Weights,
    candidate: Candidate,
    other_header: checkpoint.Header,
    others: Weights,
) -> str | None:
    """Return why an average of the two has no meaning; None where it has one."""
    ours, theirs = first.config.model, candidate.config.model
    if (ours.name, ours.weights) != (theirs.name, theirs.weights):
        return "another pretrained model"
    if ours.weights == "none":
        # Trained from different random weights, they lie in different valleys.
        return "trained from scratch"
    if any(header["card"].get(key) != other_header["card"].get(key) for key in SAME):
        return "other labels or images"
    if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in others.items()}:
        return "another architecture"
    return None
