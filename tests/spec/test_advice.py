from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from sft_tune.spec.advice import idle_batch_sizes
from sft_tune.spec.study import StudySpec

Parse = Callable[..., StudySpec]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"batch_size": 40}}, None),
        ({"training": {"batch_size": 41}}, "training.batch_size: .*write 40 or less .got 41.$"),
        ({"space": {"batch_size": [8, 40]}}, None),
        (
            {"space": {"batch_size": [8, 64, 128]}},
            "space.batch_size: sizes above the 40 training examples all do the same one step an "
            "epoch, over all of them; leave out what is above 40 .got 64, 128.$",
        ),
        ({"space": {"batch_size": {"low": 8, "high": 40}}}, None),
        ({"space": {"batch_size": {"low": 8, "high": 64}}}, "lower `high` to 40 .got 64.$"),
    ],
)
def test_sizes_above_the_number_of_examples_are_told_with_a_remedy(
    parse: Parse, changes: dict[str, Any], said: str | None
) -> None:
    told = idle_batch_sizes(parse(**changes), 40)
    assert told is None if said is None else told is not None and re.search(said, told)
