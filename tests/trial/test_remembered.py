from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import device
from sft_tune.trial.data import prepare
from sft_tune.trial.remembered import Remembered
from sft_tune.trial.trainee import Trainee, set_up

Configure = Callable[..., TrialConfig]


@pytest.fixture
def trainee_of(tmp_path: Path) -> Callable[[TrialConfig], Trainee]:
    def make(config: TrialConfig) -> Trainee:
        data = prepare(config.task, config.data, config.model, cache=tmp_path / "prepared")
        return set_up(config, data, torch.device("cpu"))

    return make


@pytest.fixture
def trainee(trainee_of: Any, digits: Configure) -> Trainee:
    made: Trainee = trainee_of(digits())
    return made


def test_what_worked_is_known_to_the_next(trainee: Trainee, tmp_path: Path) -> None:
    first = Remembered(tmp_path, trainee)
    assert first.recall() is None
    first.keep(None)
    assert not first.path.exists()
    first.keep(4)
    first.keep(2)
    assert Remembered(tmp_path, trainee).recall() == 2
    assert [path.name for path in first.path.parent.iterdir()] == [first.path.name]
    facts = json.loads(first.path.read_text())
    assert (facts["model"], facts["batch_size"]) == ("builtin:convnet", 8)


def test_it_is_written_once(trainee: Trainee, tmp_path: Path) -> None:
    Remembered(tmp_path, trainee).keep(4)
    again = Remembered(tmp_path, trainee)
    again.recall()
    again.path.unlink()
    again.keep(4)
    assert not again.path.exists()


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"batch_size": 16}},
        {"training": {"precision": "bf16"}},
        {"training": {"freeze": "backbone"}},
        {"training": {"optimizer": "sgd"}},
        {"data": {"image_size": 16}},
        {"data": {"classes": [0, 1, 2]}},
    ],
)
def test_what_takes_other_memory_has_a_file_of_its_own(
    trainee_of: Any, digits: Configure, tmp_path: Path, sections: dict[str, Any]
) -> None:
    one, other = trainee_of(digits()), trainee_of(digits(**sections))
    assert Remembered(tmp_path, one).path != Remembered(tmp_path, other).path


def test_what_takes_the_same_memory_shares_a_file(
    trainee_of: Any, digits: Configure, tmp_path: Path
) -> None:
    training = {"learning_rate": 0.1, "epochs": 5, "label_smoothing": 0.1}
    one, other = trainee_of(digits()), trainee_of(digits(training=training, seed=9))
    assert Remembered(tmp_path, one).path == Remembered(tmp_path, other).path


def test_another_limit_on_memory_has_a_file_of_its_own(
    trainee: Trainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Remembered(tmp_path, trainee).path
    monkeypatch.setattr(device.psutil, "virtual_memory", lambda: type("M", (), {"total": 2**30}))
    assert Remembered(tmp_path, trainee).path != before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"micro_batch": 4',
        b"\xff\xfe",
        b"[4]",
        b"4",
        b"{}",
        b'{"micro_batch": "4"}',
        b'{"micro_batch": true}',
        b'{"micro_batch": 4.0}',
        b'{"micro_batch": 0}',
        b'{"micro_batch": 8}',
        b'{"micro_batch": -1}',
    ],
)
def test_what_makes_no_sense_is_as_if_it_were_not_there(
    trainee: Trainee, tmp_path: Path, content: bytes
) -> None:
    remembered = Remembered(tmp_path, trainee)
    remembered.path.parent.mkdir(parents=True)
    remembered.path.write_bytes(content)
    assert remembered.recall() is None
    remembered.keep(4)
    assert Remembered(tmp_path, trainee).recall() == 4


def test_a_folder_that_cannot_be_written_is_no_matter(trainee: Trainee, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    remembered = Remembered(tmp_path / "file", trainee)
    assert remembered.recall() is None
    remembered.keep(4)
    in_the_way = Remembered(tmp_path / "cache", trainee)
    in_the_way.path.mkdir(parents=True)
    in_the_way.keep(4)
    assert [path.name for path in in_the_way.path.parent.iterdir()] == [in_the_way.path.name]


def test_writers_at_the_same_time_leave_a_whole_file(trainee: Trainee, tmp_path: Path) -> None:
    path, done = Remembered(tmp_path, trainee).path, threading.Event()
    torn: list[bytes] = []
    Remembered(tmp_path, trainee).keep(1)

    def write() -> None:
        for limit in [2, 3, 4] * 20:
            Remembered(tmp_path, trainee).keep(limit)

    def read() -> None:
        while not done.is_set():
            content = path.read_bytes()
            try:
                json.loads(content)
            except ValueError:
                torn.append(content)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write) for _ in range(2)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not torn
    assert Remembered(tmp_path, trainee).recall() in (2, 3, 4)
    assert [found.name for found in path.parent.iterdir()] == [path.name]
