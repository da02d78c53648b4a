"""Texts of a batch in parts of like length: on a CPU padding costs as much as words do."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sft_tune.trial.data import Batch, FeatureSplit, Split, TextSplit
from sft_tune.trial.data.arrays import UNTAGGED

PASS_TOKENS = 16.0
"""What one more pass costs, in tokens, where each of them meets every weight (see `pass_cost`)."""
PADDED = ("input_ids", "attention_mask", "token_type_ids", "segments")
"""Inputs with a column for each token."""


def pass_cost(module: nn.Module) -> float:
    """Return what one more pass forward and backward of ``module`` costs, in tokens.

    It adds up the gradients of all weights once more, embeddings and all, while a token takes part
    in no more than the others: 34 for MiniLM-L6 (28 measured: batches of 8, 1 thread).
    """
    parts = list(module.modules())
    # A table that is the output layer's weight too is met by every token; shared ones count once.
    outputs = {id(part.weight) for part in parts if isinstance(part, nn.Linear)}
    tables = {id(part.weight) for part in parts if isinstance(part, nn.Embedding)} - outputs
    weights = list(module.parameters())
    others = sum(weight.numel() for weight in weights if id(weight) not in tables)
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    return PASS_TOKENS * max(1.0, trained / max(1, others))


def longest_first(split: Split | FeatureSplit, indices: Tensor, device: torch.device) -> Tensor:
    """Return ``indices`` with the longest texts first where `in_like_lengths` is to cut them."""
    if not _is_cut(split, device):
        return indices
    return indices[torch.from_numpy(np.argsort(-_lengths(split, indices), kind="stable"))]


def in_like_lengths(
    split: Split | FeatureSplit,
    indices: Tensor,
    sizes: Sequence[int],
    device: torch.device,
    trained: nn.Module | None = None,
) -> list[int]:
    """Return ``sizes``, cut further where that saves more padding than another pass costs.

    That is so for texts on a CPU; on a GPU one pass of a whole batch is quicker than several.

    Args:
        split: of the examples.
        indices: of a batch, int64 [b], the longest texts first.
        sizes: of the parts that it goes through the model in; they add up to b.
        device: where.
        trained: the module, where passes go backward too.
    """
    if not _is_cut(split, device):
        return list(sizes)
    cost = PASS_TOKENS if trained is None else pass_cost(trained)
    parts = indices.split_with_sizes(list(sizes))
    return [size for part in parts for size in least_padding(_lengths(split, part), cost)]


def trimmed(split: Split | FeatureSplit, parts: Iterator[Batch]) -> Iterator[Batch]:
    """Yield ``parts`` of a batch of ``split``, each without what pads its longest text."""
    for part in parts:
        yield _trimmed(split, part) if _is_cut(split, part.targets.device) else part


def _trimmed(split: TextSplit, part: Batch) -> Batch:
    # Packed rows have no mask: what is of no segment is padding.
    mask = part.inputs["attention_mask" if split.segments is None else "segments"]
    longest = int((mask > 0).sum(dim=1).max())
    inputs = {n: t[:, :longest] if n in PADDED else t for n, t in part.inputs.items()}
    targets = part.targets
    if split.tags is not None:
        targets = targets[:, :longest]
    if split.answers is not None:
        targets = targets[:, : int((targets != UNTAGGED).sum(dim=1).max())]
        inputs["labels"] = targets
    return dataclasses.replace(part, inputs=inputs, targets=targets)


def least_padding(lengths: NDArray[np.int64], pass_tokens: float) -> list[int]:
    """Return the sizes of parts whose passes, each padded to its longest text, cost least in all.

    The least is found by dynamic programming over where the last part begins.

    Args:
        lengths: of the texts in tokens, falling, int64 [n].
        pass_tokens: what a pass costs beside its padded tokens.
    """
    n = len(lengths)
    least, begins = np.zeros(n + 1), np.zeros(n + 1, dtype=np.int64)
    for end in range(1, n + 1):
        costs = least[:end] + (end - np.arange(end)) * lengths[:end] + pass_tokens
        begins[end] = costs.argmin()
        least[end] = costs[begins[end]]
    sizes, end = [], n
    while end > 0:
        sizes.append(end - int(begins[end]))
        end -= sizes[-1]
    return sizes[::-1]


def _is_cut(split: Split | FeatureSplit, device: torch.device) -> TypeGuard[TextSplit]:
    # With padding on the left another width moves the words to other positions.
    return device.type == "cpu" and isinstance(split, TextSplit) and not split.pad_left


def _lengths(split: TextSplit, indices: Tensor) -> NDArray[np.int64]:
    rows = indices.numpy()
    lengths: NDArray[np.int64] = split.offsets[rows + 1] - split.offsets[rows]
    return lengths
