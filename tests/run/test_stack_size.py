"""How many trials are to train as one, of what a worker has measured."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from sft_tune.run.engine import Inbox, LocalEngine, Worker
from sft_tune.run.messages import Message
from sft_tune.run.slots import Slot
from sft_tune.run.stacking import stack_size
from sft_tune.run.study import submit_study
from sft_tune.spec.load import load_study
from sft_tune.store.database import Database
from sft_tune.store.records import find_study
from sft_tune.trial.convnet import ConvNet


class Measuring(Worker):
    """A worker that knows already what is asked of it."""

    def __init__(self, inbox: Inbox, gain: float, most: int | None) -> None:
        """Answer in ``inbox``."""
        self._inbox = inbox
        self._answer = {"event": "measured", "gain": gain, "most": most}
        self.asked: list[Message] = []

    def send(self, message: Message) -> None:
        self.asked.append(message)
        self._inbox.put((self, self._answer))

    def close(self, patience: float = 10.0) -> None:
        """Do nothing."""

    def kill(self) -> None:
        """Do nothing."""


@pytest.fixture
def sized(study_file: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[int, list[int]]]:
    """Return how many train as one, and the batch sizes that were tried."""
    save_file(ConvNet(10).state_dict(), tmp_path / "convnet.safetensors")
    numbers = itertools.count()
    model = {"weights": str(tmp_path / "convnet.safetensors")}

    def of(
        slots: list[Slot],
        gain: float = 3.0,
        most: int | None = None,
        facts: dict[str, Any] | None = None,
        **changes: Any,
    ) -> tuple[int, list[int]]:
        frozen = {"model": model, "training": {"freeze": "backbone"}}
        db = Database.open(f"sqlite:///{tmp_path}/{next(numbers)}.db", create=True)
        try:
            submit_study(load_study(study_file(**{**frozen, **changes})), db, check=False)
            record = replace(find_study(db, "tiny"), facts=facts or {})
        finally:
            db.dispose()
        inbox: Inbox = queue.SimpleQueue()
        worker = Measuring(inbox, gain, most)
        count = stack_size(record, LocalEngine(tmp_path), slots, inbox, [worker])
        return count, worker.asked[0]["batch_sizes"] if worker.asked else []

    return of


CPU = Slot(0, None, 1)
RATES = {"learning_rate": [0.003, 0.01]}
MANY = {"budget": {"trials": 40}}


@pytest.mark.parametrize(
    ("batch_size", "tried"),
    [
        ([64, 8, 16], [8, 8, 8, 16, 16, 16, 64, 64]),
        ({"low": 8, "high": 1024, "log": True}, [8, 16, 32, 64, 128, 256, 512, 1024]),
        ({"low": 8, "high": 16, "step": 8}, [8, 9, 10, 11, 13, 14, 15, 16]),
    ],
)
def test_the_batch_sizes_of_the_space_are_measured(
    sized: Callable[..., Any], batch_size: Any, tried: list[int]
) -> None:
    assert sized([CPU], space={**RATES, "batch_size": batch_size}, **MANY) == (32, tried)


def test_a_stack_is_as_large_as_memory_and_gain_allow(sized: Callable[..., Any]) -> None:
    gpus = [Slot(i, str(i // 2), 1, share=1 + i % 2, sharing=2) for i in range(4)]
    assert sized([CPU], space=RATES, **MANY) == (32, [16] * 8)
    assert sized([CPU], most=5, space=RATES, **MANY)[0] == 5
    assert sized(gpus, most=100, space=RATES, **MANY)[0] == 8
    assert sized(gpus, most=11, space=RATES, **MANY)[0] == 5  # two slots share each GPU
    assert sized(gpus, most=3, space=RATES, **MANY)[0] == 1
    assert sized([CPU], gain=1.1, space=RATES, **MANY)[0] == 1
    assert sized([CPU], space=RATES, resources={"stack": 6}, **MANY) == (6, [])


def test_models_whose_steps_fill_a_processor_are_not_measured(sized: Callable[..., Any]) -> None:
    whole = {"model": {"dropout": None}, "training": {"augment": "none"}, "space": RATES, **MANY}
    slow, quick = ({"batch_sizes": [{"seconds_per_step": s}]} for s in (0.2, 0.01))
    gpu = Slot(0, "0", 1, share=1, sharing=1)
    assert sized([CPU], facts=slow, **whole) == (1, [])
    assert sized([CPU], facts=quick, **whole) == (32, [16] * 8)
    assert sized([gpu], facts=slow, **whole) == (32, [16] * 8)
    # Kept features are another step than the one that was checked.
    assert sized([CPU], facts=slow, space=RATES, **MANY)[0] == 32
