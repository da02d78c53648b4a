from __future__ import annotations

import os

import pytest

from sft_tune.errors import UserError
from sft_tune.run.slots import available_cores, find_slots, worker_environment
from sft_tune.spec.study import ResourcesSpec


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")


def test_a_machine_without_gpu_has_one_slot_with_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (slot,) = find_slots(ResourcesSpec())
    assert (slot.device, slot.label, slot.threads) == ("cpu", "CPU", available_cores())


@pytest.mark.parametrize(
    ("devices", "gpu", "device"),
    [("auto", "0", "cuda:0"), ("cpu", None, "cpu"), ((3,), "3", "cuda:0")],
)
@pytest.mark.usefixtures("two_gpus")
def test_a_slot_is_where_the_study_file_says(devices: object, gpu: str, device: str) -> None:
    (slot,) = find_slots(ResourcesSpec.model_validate({"devices": devices}))
    assert (slot.gpu, slot.device) == (gpu, device)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"got 1; this machine has GPUs 0, 3"):
        find_slots(ResourcesSpec(devices=(1,)))


@pytest.mark.usefixtures("two_gpus")
def test_a_worker_sees_its_gpu_and_its_threads_only() -> None:
    (slot,) = find_slots(ResourcesSpec(devices=(3,), threads_per_trial=2))
    environment = worker_environment(slot)
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "2"
    assert environment["PATH"] == os.environ["PATH"]


def test_a_worker_on_the_cpu_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    (slot,) = find_slots(ResourcesSpec(devices="cpu"))
    assert worker_environment(slot)["CUDA_VISIBLE_DEVICES"] == ""
