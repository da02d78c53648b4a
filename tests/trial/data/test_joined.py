from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sft_tune.trial.data import ImageSplit, TextSplit, gather
from sft_tune.trial.data.joined import joined


def texts(*rows: list[int], typed: bool = False) -> TextSplit:
    tokens = np.concatenate([np.array(row, np.int32) for row in rows])
    return TextSplit(
        tokens=tokens,
        offsets=np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
        targets=np.arange(len(rows), dtype=np.int64),
        pad_id=0,
        token_types=np.ones(len(tokens), np.uint8) if typed else None,
    )


def test_images_are_put_behind_one_another() -> None:
    first = ImageSplit(np.zeros((2, 3, 4, 4), np.uint8), np.array([0, 1]))
    second = ImageSplit(np.ones((1, 3, 4, 4), np.uint8), np.array([1]))
    both = joined(first, second)
    assert isinstance(both, ImageSplit)
    assert both.pixels[:, 0, 0, 0].tolist() == [0, 0, 1]
    assert both.targets.tolist() == [0, 1, 1]


def test_masks_stay_with_their_images() -> None:
    first, second = (
        ImageSplit(np.zeros((n, 3, 2, 2), np.uint8), np.ones(n), np.full((n, 2, 2), n, np.uint8))
        for n in (2, 1)
    )
    both = joined(first, second)
    assert isinstance(both, ImageSplit) and both.masks is not None
    assert both.masks[:, 0, 0].tolist() == [2, 2, 1]


@pytest.mark.parametrize("typed", [(False, False), (True, True), (False, True), (True, False)])
def test_texts_keep_their_tokens(typed: tuple[bool, bool]) -> None:
    first, second = texts([1, 2, 3], [4], typed=typed[0]), texts([5, 6], [7], typed=typed[1])
    both = joined(first, second)
    batch = gather(both, torch.arange(4), "cpu")
    assert batch.inputs["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0], [7, 0, 0]]
    assert batch.targets.tolist() == [0, 1, 0, 1]
    if any(typed):
        types = batch.inputs["token_type_ids"][:, 0].tolist()
        assert types == [int(typed[0])] * 2 + [int(typed[1])] * 2


def test_tags_stay_with_their_tokens() -> None:
    first, second = (
        replace(texts([1, 2], [3]), tags=np.array(tags, np.int32))
        for tags in ([0, 1, 2], [3, 4, 5])
    )
    both = joined(first, second)
    assert isinstance(both, TextSplit) and both.tags is not None
    assert both.tags.tolist() == [0, 1, 2, 3, 4, 5]


def test_images_and_texts_do_not_join() -> None:
    with pytest.raises(TypeError):
        joined(texts([1]), ImageSplit(np.zeros((1, 3, 2, 2), np.uint8), np.array([0])))
