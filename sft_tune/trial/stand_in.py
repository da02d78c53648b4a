"""Features that stand in for a frozen backbone's, where only what a trial takes is asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sft_tune.trial.data import FeatureSplit, Split, evaluation_batches
from sft_tune.trial.data.cache import prepared_root
from sft_tune.trial.features import (
    TRIED,
    Entrance,
    find_entrance,
    is_drawn,
    key_of_features,
    make_features,
)
from sft_tune.trial.portions import Portion
from sft_tune.trial.trainee import Trainee

ENOUGH_SECONDS = 1.0
"""So long a part of the examples goes through the backbone, to tell how long all of them do."""


class StandIn(NamedTuple):
    """What is as large as the features of a trial, and what those take.

    Attributes:
        chain: the modules of the head (see `Entrance`).
        splits: by name; every example has the features of one.
        once: seconds to make the features of all examples; 0 where they are kept already.
        each: seconds that a trial takes to find those that are kept, or to make its own.
    """

    chain: tuple[str, ...]
    splits: Mapping[str, FeatureSplit]
    once: float
    each: float

    def enter(self, trainee: Trainee) -> None:
        """Have ``trainee`` train and evaluate its head on these."""
        trainee.model.chain = self.chain
        trainee.features = dict(self.splits)


def stand_in(trainee: Trainee, cache: Path, batch_size: int) -> StandIn | None:
    """Return what stands in for the features of ``trainee``; None where it would not be on any.

    Only a part of the examples goes through the backbone.

    Args:
        trainee: as it is before its first step.
        cache: folder of prepared data.
        batch_size: examples at once where features are made.

    Raises:
        RuntimeError, MemoryError: when memory runs out even for one example.
    """
    begin = time.perf_counter()
    entrance = find_entrance(trainee)
    if isinstance(entrance, str):
        return None
    data = trainee.data
    splits: dict[str, Split] = {"train": data.train, "validation": data.validation}
    if entrance.too_large(splits):
        return None
    key = key_of_features(trainee, entrance)
    found = time.perf_counter() - begin
    once = 0.0
    if not (prepared_root(cache) / key).is_dir():
        an_example = _seconds_of_an_example(trainee, entrance, batch_size)
        once = an_example * sum(map(len, splits.values()))
    one = make_features(trainee, entrance, data.train, torch.arange(1), Portion()).numpy()
    drawn = is_drawn(trainee.config.model)
    return StandIn(
        chain=entrance.chain,
        splits={
            name: FeatureSplit(
                # Takes no memory.
                np.broadcast_to(one, (len(split), *entrance.shape)),
                split.targets,
                # Not the key: a trial that follows is to have its own on the device.
                f"in place of {key}",
            )
            for name, split in splits.items()
        },
        once=0.0 if drawn else once,
        each=found + once if drawn else found,
    )


def _seconds_of_an_example(trainee: Trainee, entrance: Entrance, batch_size: int) -> float:
    """Return how long the backbone takes for an example of the training split.

    They come in batches as they do where features are made: of texts in one of middle length.
    """
    split = trainee.data.train
    batches = list(evaluation_batches(split, batch_size))
    batch = batches[(len(batches) - 1) // 2]
    count, spent = TRIED, 0.0
    while True:
        some = batch[:count]
        begin = time.perf_counter()
        make_features(trainee, entrance, split, some, Portion())
        took = time.perf_counter() - begin
        spent += took
        # The first of all may take longer than any that follow.
        if len(some) == len(batch) or spent > ENOUGH_SECONDS:
            return took / len(some)
        count *= 4
