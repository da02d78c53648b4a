"""Data that lies whole on a real GPU: the same batches, no waiting, no memory that grows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data import Batch, FeatureSplit, ImageSplit, Split, TextSplit, gather
from sft_tune.trial.data.augment import Augmentation
from sft_tune.trial.data.resident import held_bytes, hold, release
from sft_tune.trial.device import kept_bytes
from sft_tune.trial.loop import run_trial
from sft_tune.trial.outcome import Outcome
from sft_tune.trial.paths import TrialPaths

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
]

DEVICE = torch.device("cuda:0")
ROWS = torch.tensor([7, 2, 2, 11, 0])


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    release(DEVICE)
    yield
    torch.cuda.set_sync_debug_mode("default")
    release(DEVICE)


def splits() -> dict[str, Split | FeatureSplit]:
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 9, 12))]).astype(np.int64)
    tokens = rng.integers(1, 99, int(offsets[-1]), dtype=np.int32)
    pixels = rng.integers(0, 256, (12, 3, 8, 16), dtype=np.uint8)
    masks = rng.integers(0, 4, (12, 8, 16), dtype=np.uint8)
    return {
        "images": ImageSplit(pixels, np.arange(12) % 3),
        "masks": ImageSplit(pixels, np.zeros(12, np.int64), masks),
        "features": FeatureSplit(rng.random((12, 4), np.float32), np.arange(12)),
        "texts": TextSplit(tokens, offsets, np.arange(12) % 2, pad_id=5),
        "tags": TextSplit(tokens, offsets, np.arange(12), pad_id=5, tags=tokens, pad_left=True),
    }


def batch_of(split: Split | FeatureSplit, device: str | torch.device) -> Batch:
    torch.manual_seed(0)
    masking = Augmentation(TrainingSpec(token_masking=0.5), mask_id=77, special_ids=(5,))
    beyond = masking if isinstance(split, TextSplit) else None
    return gather(split, ROWS, device, augment="flip_crop", beyond=beyond)


@pytest.mark.parametrize("kind", splits())
def test_a_batch_is_that_of_the_cpu_and_nothing_waits_for_it(kind: str) -> None:
    split = splits()[kind]
    expected = batch_of(split, "cpu")
    batch_of(split, DEVICE)  # what is made once waits
    hold("data", {"train": split}, DEVICE)
    assert held_bytes(DEVICE) > 0
    batch_of(split, DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    found = batch_of(split, DEVICE)
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.targets.cpu(), expected.targets)
    for name, tensor in expected.inputs.items():
        # Pixels are scaled in floating point, where a GPU fuses what a CPU rounds twice.
        torch.testing.assert_close(found.inputs[name].cpu(), tensor, rtol=1e-6, atol=1e-6)


def test_data_is_as_large_as_the_room_that_it_takes() -> None:
    free = torch.cuda.mem_get_info(DEVICE)[0]
    large = FeatureSplit(np.zeros((16, 2**20), np.float32), np.zeros(16, np.int64))
    hold("large", {"train": large}, DEVICE, spoken_for=free)
    assert held_bytes(DEVICE) == 0
    hold("large", {"train": large}, DEVICE)
    assert held_bytes(DEVICE) == large.features.nbytes + large.targets.nbytes
    allocated = torch.cuda.memory_allocated(DEVICE)
    release(DEVICE)
    assert allocated - torch.cuda.memory_allocated(DEVICE) >= large.features.nbytes


def run(folder: Path, source: str) -> Outcome:
    config = TrialConfig.model_validate(
        {
            "task": "image-classification",
            "data": {"source": source, "train_limit": 256, "validation_limit": 64},
            "model": {"name": "builtin:convnet", "weights": "none"},
            "training": {"epochs": 2, "batch_size": 32, "learning_rate": 0.003},
            "objective": {"rungs": 2},
            "seed": 3,
        }
    )
    return run_trial(
        config,
        TrialPaths(folder),
        device=str(DEVICE),
        cache=folder.parent / "cache",
        report=lambda _: True,
        should_stop=lambda: False,
        checkpoint_seconds=1e9,
        evaluation_batch_size=64,
    )


def test_a_trial_leaves_its_data_to_the_next_and_keeps_nothing_else(tmp_path: Path) -> None:
    run(tmp_path / "warm-up", "sklearn:digits")
    held, kept = held_bytes(DEVICE), kept_bytes(str(DEVICE))
    assert held >= (256 + 64) * 3 * 8 * 8
    run(tmp_path / "next", "sklearn:digits")
    assert held_bytes(DEVICE) == held
    # A worker that keeps more after each trial is replaced: what it holds does not count.
    assert kept_bytes(str(DEVICE)) <= kept
    assert torch.cuda.memory_allocated(DEVICE) == kept_bytes(str(DEVICE)) + held
