"""What a stack of models gives: measured where it can repay that, remembered, within memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sft_tune.spec.config import TrialConfig
from sft_tune.trial.stack import gain, room
from sft_tune.trial.stack.gain import Gain


@pytest.fixture
def measure(digits: Callable[..., TrialConfig], tmp_path: Path) -> Callable[..., Gain]:
    """Measure a stack of up to four networks."""

    def measured(
        trials: int | None = None, sizes: tuple[int, ...] = (8, 8, 8, 8), **model: Any
    ) -> Gain:
        config = digits(model={"dropout": None, **model}, training={"augment": "none"})
        return gain.measure(
            config, sizes, trials=trials, device="cpu", cache=tmp_path, batch_size=16
        )

    return measured


def test_what_was_measured_is_remembered(measure: Callable[..., Gain], tmp_path: Path) -> None:
    found = measure()
    assert 0.1 < found.ratio < 3
    assert found.most is not None and found.most > 4
    (path,) = (tmp_path / gain.FOLDER).iterdir()
    record = json.loads(path.read_text())
    assert record["ratio"] == found.ratio
    assert record["bytes"] > 4 * 50_000 * room.COPIES  # the network has 56,000 weights
    path.write_text(json.dumps({**record, "ratio": 7.0}))
    assert measure().ratio == 7.0
    path.write_text("torn")
    assert 0.1 < measure().ratio < 3


def test_a_study_of_few_steps_is_not_worth_a_measurement(
    measure: Callable[..., Gain], tmp_path: Path
) -> None:
    assert measure(trials=10).ratio == 0
    (path,) = (tmp_path / gain.FOLDER).iterdir()
    record = json.loads(path.read_text())
    assert record["ratio"] is None and record["alone"] > 0
    # What a step takes is remembered, too: a larger study measures more.
    assert measure(trials=10).ratio == 0
    assert json.loads(path.read_text()) == record
    assert 0.1 < measure().ratio < 3


def test_a_model_that_cannot_be_stacked_gains_nothing(
    measure: Callable[..., Gain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(gain, "_fastest")  # refused before anything is timed
        assert measure(dropout=0.5).ratio == 0
    assert len(list((tmp_path / gain.FOLDER).iterdir())) == 1
    monkeypatch.delattr(gain, "set_up")  # and known without the model the next time
    assert measure(dropout=0.5).ratio == 0


def test_a_stack_is_no_larger_than_memory(
    measure: Callable[..., Gain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(room, "SHARE", 1e-9)
        assert measure().ratio == 0
    assert not (tmp_path / gain.FOLDER).exists()  # another time there may be more
    assert measure().ratio > 0.1
    monkeypatch.setattr(room, "SHARE", 1e-9)
    assert measure().most == 0


def test_what_batches_of_unequal_sizes_gain_is_known_apart(
    measure: Callable[..., Gain], tmp_path: Path
) -> None:
    measure()
    assert 0.1 < measure(sizes=(8, 8, 16, 48)).ratio < 3
    assert len(list((tmp_path / gain.FOLDER).iterdir())) == 2


def test_heads_are_no_more_than_memory_holds(
    sentences: Callable[..., TrialConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sentences(training={"freeze": "backbone"})

    def measured(*sizes: int) -> Gain:
        return gain.measure(config, sizes, trials=None, device="cpu", cache=tmp_path, batch_size=16)

    found = measured(4, 4, 8, 16)
    assert found.ratio > 1 and found.most is not None and found.most > 100
    # A batch of more examples leaves room for fewer.
    assert measured(4, 4000).most < found.most / 100
    monkeypatch.setattr(room, "SHARE", 1e-9)
    assert measured(4, 4).most == 1
