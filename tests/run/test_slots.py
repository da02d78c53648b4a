from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from sft_tune.errors import UserError
from sft_tune.run.slots import (
    Slot,
    available_cores,
    find_slots,
    gpu_memory,
    unused_gpus,
    worker_environment,
)
from sft_tune.spec.resources import ResourcesSpec


def slots(**resources: object) -> list[Slot]:
    return find_slots(ResourcesSpec.model_validate(resources))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Let a driver know GPUs, each a line of nvidia-smi's answer."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)

    def know(*gpus: str) -> None:
        lines = "".join(f"echo '{gpu}'\n" for gpu in gpus)
        write_tool(tmp_path / "bin", lines)

    return know


@pytest.fixture
def broken_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A driver that is not the one that nvidia-smi was made for; return what it says."""
    said = "Failed to initialize NVML: Driver/library version mismatch"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    write_tool(tmp_path / "bin", f"echo '{said}'\necho 'NVML library version: 550.9'\nexit 18\n")
    return said


def write_tool(folder: Path, lines: str) -> None:
    folder.mkdir(exist_ok=True)
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{lines}")
    tool.chmod(0o755)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, driver: Callable[..., None]) -> None:
    """A driver that knows GPUs 0 and 3, of 80 and of 24 GiB."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    driver("0, GPU-a, 81920", "3, GPU-b, 24576")


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


def test_a_driver_that_fails_leaves_trials_the_cpu_and_a_line_about_it(broken_driver: str) -> None:
    assert [slot.gpu for slot in slots()] == [None]
    told = unused_gpus(ResourcesSpec())
    assert told is not None and "\n" not in told
    assert f"(it failed: {broken_driver}); mend the driver, or set `devices: cpu`" in told
    assert unused_gpus(ResourcesSpec(devices="cpu")) is None
    assert gpu_memory() == {}


def test_a_gpu_that_is_asked_for_needs_a_driver_that_answers(broken_driver: str) -> None:
    with pytest.raises(UserError, match=f"{broken_driver}.*; mend the driver, or use `cpu`"):
        slots(devices=[0])


def test_a_tool_that_cannot_be_run_or_says_nothing_is_told_of_too(
    broken_driver: str, tmp_path: Path
) -> None:
    write_tool(tmp_path / "bin", "exit 9\n")
    assert "(it failed: exit code 9)" in (unused_gpus(ResourcesSpec()) or "")
    (tmp_path / "bin" / "nvidia-smi").write_bytes(b"\x7fELF")
    assert "(it failed: " in (unused_gpus(ResourcesSpec()) or "")


@pytest.mark.usefixtures("two_gpus")
def test_of_a_driver_that_answers_nothing_is_told() -> None:
    assert unused_gpus(ResourcesSpec()) is None


def test_a_gpu_without_memory_of_its_own_has_none_that_is_known(
    driver: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver("0, GPU-a, [N/A]", "1, GPU-b, 24576")
    assert gpu_memory() == {"1": 24, "GPU-b": 24}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match=r"\(got GPU 0, .*\); give trials_per_device instead"):
        slots(memory_per_trial=20)
    assert len(slots(memory_per_trial=20, trials_per_device=2)) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1f2e")
    with pytest.raises(UserError, match="got GPU MIG-1f2e, of which nvidia-smi tells none"):
        slots(memory_per_trial=20)


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("2, 0", ["2", "0"]),
        ("0,-1,1", ["0"]),
        ("GPU-8f1c,MIG-22,void", ["GPU-8f1c", "MIG-22"]),
        *((word, [None]) for word in ("NoDevFiles", "none", "void", "-1", "")),
    ],
)
def test_gpus_are_those_that_cuda_sees_in_what_the_user_names(
    monkeypatch: pytest.MonkeyPatch, visible: str, gpus: list[str | None]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [slot.gpu for slot in slots()] == gpus


def test_gpus_are_found_without_the_tool_that_lists_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("nvidia1", "nvidia4", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.setattr("sft_tune.run.slots.DEVICE_FILES", tmp_path)
    assert [slot.gpu for slot in slots()] == ["0", "1"]
    # Under Windows the tool is beside the PATH.
    write_tool(tmp_path / "wsl", "echo '0, GPU-a, 8192'\n")
    monkeypatch.setattr("sft_tune.run.slots.WSL_TOOLS", str(tmp_path / "wsl"))
    assert [slot.gpu for slot in slots(memory_per_trial=4)] == ["0", "0"]


@pytest.mark.usefixtures("two_gpus")
def test_numbers_of_gpus_are_the_drivers_unless_the_user_gives_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    assert worker_environment(slots()[0])["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert worker_environment(slots()[0])["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"
    # Of the GPUs of unlike memory it is then not known which is 0.
    with pytest.raises(UserError, match="got GPU 0, of which nvidia-smi tells none"):
        slots(memory_per_trial=20)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [slot.gpu for slot in slots(memory_per_trial=20)] == ["0"] * 4 + ["3"]
    assert worker_environment(slots()[0])["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


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
