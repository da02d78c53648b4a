from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from sft_tune.errors import UserError
from sft_tune.run.slots import Slot, available_cores, find_slots, gpu_memory, worker_environment
from sft_tune.spec.resources import ResourcesSpec


def slots(**resources: object) -> list[Slot]:
    return find_slots(ResourcesSpec.model_validate(resources))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A driver that knows GPUs 0 and 3, of 80 and of 24 GiB."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho '0, GPU-a, 81920'\necho '3, GPU-b, 24576'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def test_a_machine_without_gpu_has_one_slot_with_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (slot,) = slots()
    assert (slot.device, slot.label, slot.threads) == ("cpu", "CPU", available_cores())


def test_trials_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft_tune.run.slots.available_cores", lambda: 8)
    found = slots(devices="cpu", trials_per_device=3)
    assert [(slot.index, slot.label, slot.threads) for slot in found] == [
        (0, "CPU #1", 2),
        (1, "CPU #2", 2),
        (2, "CPU #3", 2),
    ]
    assert [slot.threads for slot in slots(devices="cpu", trials_per_device=20)] == [1] * 20
    # What was measured counts where the study file leaves it open, and only there.
    assert len(find_slots(ResourcesSpec(devices="cpu"), 4)) == 4
    assert len(find_slots(ResourcesSpec(devices="cpu", trials_per_device=2), 4)) == 2


@pytest.mark.parametrize(
    ("devices", "gpus"),
    [("auto", ["0", "3"]), ("cpu", [None]), ((3,), ["3"]), ((3, 0, 3), ["3", "0"])],
)
@pytest.mark.usefixtures("two_gpus")
def test_slots_are_where_the_study_file_says(devices: object, gpus: list[str | None]) -> None:
    found = slots(devices=devices)
    assert [slot.gpu for slot in found] == gpus
    assert {slot.device for slot in found} == {"cpu" if gpus == [None] else "cuda:0"}
    assert [slot.index for slot in found] == list(range(len(gpus)))


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_shared_as_they_are_told_or_as_memory_admits() -> None:
    assert [s.label for s in slots(trials_per_device=2)] == [
        *("GPU 0 #1", "GPU 0 #2", "GPU 3 #1", "GPU 3 #2"),
    ]
    assert [s.gpu for s in slots(memory_per_trial=20)] == ["0"] * 4 + ["3"]
    assert {s.sharing for s in slots(devices=[0], memory_per_trial=20)} == {4}


@pytest.mark.usefixtures("two_gpus")
def test_a_trial_that_does_not_fit_on_a_gpu_is_told_with_the_gpu() -> None:
    with pytest.raises(UserError, match=r"a trial of 40 GiB must fit \(got GPU 3 with 24.0 GiB\)"):
        slots(memory_per_trial=40)
    with pytest.raises(UserError, match="2 trials of 20 GiB must fit"):
        slots(memory_per_trial=20, trials_per_device=2)


def test_no_more_trials_run_on_the_cpu_than_memory_holds() -> None:
    third = psutil.virtual_memory().total / 2**30 / 3.5
    resources = ResourcesSpec(devices="cpu", memory_per_trial=third)
    assert len(find_slots(resources, 8)) == 3


def test_without_a_driver_no_gpu_has_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_memory() == {}


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
