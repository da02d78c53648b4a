"""Outputs and metrics of a whole split, without touching any random-number state."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sft_tune.trial.data import FeatureSplit, Prepared, Split, TextSplit, evaluation_batches, gather
from sft_tune.trial.device import autocast
from sft_tune.trial.lengths import in_like_lengths
from sft_tune.trial.losses import IGNORED
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.models_language import written
from sft_tune.trial.portions import Portion, within_memory
from sft_tune.trial.tasks import Outputs, TrialTask

# Of language models at once: 1 GiB in single precision.
MOST_LOGITS = 2**28


def evaluate(
    task: TrialTask,
    model: BuiltModel,
    split: Split,
    metrics: Iterable[str],
    data: Prepared,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    portion: Portion | None = None,
) -> dict[str, float]:
    """Return the metrics of ``model`` on ``split`` of ``data`` (arguments: see `predict`).

    The module is left in evaluation mode: the caller sets it back to training.
    """
    kept = predict(
        task,
        model,
        split,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        portion=portion,
    )
    return task.metrics(metrics, kept, split, data)


@torch.inference_mode()
def predict(
    task: TrialTask,
    model: BuiltModel,
    split: Split | FeatureSplit,
    *,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    portion: Portion | None = None,
    rows: Tensor | None = None,
) -> Outputs:
    """Return what ``task`` keeps of the outputs for ``split``, in its order, on the CPU.

    Args:
        task: of the model.
        model: it is set to evaluation.
        split: the examples.
        device: where the model is.
        dtype: that matrix products run in.
        batch_size: examples per batch.
        portion: how many of them go through the model at once; it keeps what fits.
        rows: only these examples, in this order, int64; None: all.

    Raises:
        RuntimeError, MemoryError: when not even one example fits into memory.
    """
    model.module.eval()
    portion = portion or Portion()
    batch_size = int(min(batch_size, _most_examples(model, split)))
    places: list[Tensor] = []
    parts: list[Outputs] = []
    for some in evaluation_batches(split, batch_size, rows):
        indices = some if rows is None else rows[some]
        work = functools.partial(_kept, task, model, split, indices, device, dtype)
        parts += within_memory(portion, len(indices), work, device=device)
        places.append(some)
    order = torch.cat(places)
    return {name: _in_order([part[name] for part in parts], order) for name in parts[0]}


def _most_examples(model: BuiltModel, split: Split | FeatureSplit) -> float:
    """Return of how many examples of ``split`` the logits are no more than `MOST_LOGITS`.

    On the CPU a batch that is too large is not an error that can be caught: it ends the process.
    """
    if not model.writes or not isinstance(split, TextSplit):
        return math.inf
    module: Any = model.module
    vocabulary = int(module.config.get_text_config().vocab_size)
    return max(1, MOST_LOGITS // (vocabulary * int(split.lengths.max(initial=1))))


def _in_order(parts: list[Tensor], order: Tensor) -> Tensor:
    """Return the rows of ``parts`` at the places ``order``, narrow parts filled up."""
    if parts[0].ndim == 2:
        widest = max(part.shape[1] for part in parts)
        parts = [
            part
            if part.shape[1] == widest
            else functional.pad(part, (0, widest - part.shape[1]), value=IGNORED)
            for part in parts
        ]
    found = torch.cat(parts).cpu()
    rows = torch.empty_like(found)
    rows[order] = found
    return rows


def _kept(
    task: TrialTask,
    model: BuiltModel,
    split: Split | FeatureSplit,
    indices: Tensor,
    device: torch.device,
    dtype: torch.dtype,
    sizes: list[int],
) -> list[Outputs]:
    """Return what is kept of the outputs for ``indices``, in parts of at most ``sizes``."""
    found = []
    # Writing takes a pass for each token that is written, whatever the texts' lengths.
    if model.writing is None:
        sizes = in_like_lengths(split, indices, sizes, device)
    for rows in indices.split_with_sizes(sizes):
        batch = gather(split, rows, device, normalize=model.normalize)
        with autocast(device, dtype):
            outputs = model.outputs(batch.inputs)
            texts = {} if model.writing is None else {"written": written(model, batch.inputs)}
        found.append({**task.keep(outputs, batch), **texts})
    return found
