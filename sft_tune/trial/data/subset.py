"""A fixed part of a split, for the rungs that are not evaluated on the whole of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.evaluating import early_examples
from sft_tune.trial.data.arrays import AudioSplit, BoxSplit, ImageSplit, Prepared, Ragged, Split
from sft_tune.trial.data.splits import take_at_most


@dataclass(frozen=True)
class Subset:
    """Some examples of a split.

    Attributes:
        rows: which, ascending, int64 [m].
        truth: what metrics read of them: the split of these examples, but without their pixels
            or sounds.
    """

    rows: Tensor
    truth: Split

    def __len__(self) -> int:
        return len(self.rows)


def early_subset(config: TrialConfig, data: Prepared) -> Subset | None:
    """Return what every rung but the last of ``config`` is evaluated on; None: all of validation.

    The same for all trials of a study: stratified where the targets are classes or counts, drawn
    by ``data.split_seed``.
    """
    split = data.validation
    epochs = config.fewest_epochs or config.training.epochs
    count = early_examples(
        config.objective, train=len(data.train), validation=len(split), epochs=epochs
    )
    if count == len(split):
        return None
    targets = split.targets
    counted = targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer)
    strata = targets.astype(np.int64) if counted else np.zeros(len(split), dtype=np.int64)
    rows = take_at_most(strata, count, config.data.split_seed, "early rungs")
    return Subset(torch.from_numpy(rows), truth_of(split, rows))


def truth_of(split: Split, rows: NDArray[np.int64]) -> Split:
    """Return the examples ``rows`` of ``split``, without their pixels or sounds."""
    targets = split.targets[rows]
    if isinstance(split, ImageSplit):
        return replace(split, pixels=split.pixels[:0], targets=targets, masks=None)
    if isinstance(split, AudioSplit):
        none = np.zeros(len(rows) + 1, dtype=np.int64)
        return replace(split, values=split.values[:0], offsets=none, targets=targets)
    if isinstance(split, BoxSplit):
        parts = ("boxes", "box_labels", "crowds")
        arrays: dict[str, Any] = {
            name: _taken(Ragged(getattr(split, name), split.box_offsets), rows).flat
            for name in parts
        }
        return replace(
            split,
            pixels=split.pixels[:0],
            offsets=np.zeros(len(rows) + 1, dtype=np.int64),
            sizes=split.sizes[rows],
            targets=targets,
            **arrays,
        )
    tokens = _taken(Ragged(split.tokens, split.offsets), rows)

    def beside(flat: NDArray[Any] | None) -> NDArray[Any] | None:
        return None if flat is None else _taken(Ragged(flat, split.offsets), rows).flat

    return replace(
        split,
        tokens=tokens.flat,
        offsets=tokens.offsets,
        targets=targets,
        token_types=beside(split.token_types),
        tags=beside(split.tags),
        segments=beside(split.segments),
        answers=None if split.answers is None else _taken(split.answers, rows),
        references=None if split.references is None else _taken(split.references, rows),
    )


def _taken(ragged: Ragged, rows: NDArray[np.int64]) -> Ragged:
    """Return the rows ``rows`` of ``ragged``."""
    starts, ends = ragged.offsets[rows], ragged.offsets[rows + 1]
    parts = [ragged.flat[start:end] for start, end in zip(starts, ends, strict=True)]
    offsets = np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64)
    return Ragged(np.concatenate(parts), offsets)
