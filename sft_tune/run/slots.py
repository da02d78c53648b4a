"""Device slots: the places where one trial runs, and the environment that confines it there."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from sft_tune.errors import UserError
from sft_tune.run import nursery
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.spec.study import StudySpec

GIB = 2**30
GPU_NAME = re.compile(r"\d+|(GPU|MIG)-.+")
DEVICE_FILES = Path("/dev")
WSL_TOOLS = "/usr/lib/wsl/lib"
"""Where Windows puts the driver's tools for Linux, not everywhere on the PATH."""
BY_BUS = "PCI_BUS_ID"
"""How nvidia-smi numbers GPUs. CUDA by itself begins with the fastest."""
LOADED_BY = {"transformers": "transformers.modeling_utils", "timm": "timm"}
"""What a worker imports, for a second or two, to make a model of the library."""


class DriverError(Exception):
    """The tool that lists the GPUs is there and fails; the message is what it said."""


@dataclass(frozen=True)
class Slot:
    """One place for one trial.

    Attributes:
        index: number of the slot on this machine, from 0.
        gpu: the GPU as the driver numbers it (or its UUID); None: the CPU.
        threads: CPU threads of the trial.
        share: which of several slots of one device it is, from 1; 0: it has the device alone.
        sharing: how many slots its device has.
        lane: which of the trials that train there as one stack, from 1; 0: there is no stack.
    """

    index: int
    gpu: str | None
    threads: int
    share: int = 0
    sharing: int = 1
    lane: int = 0

    @property
    def device(self) -> str:
        """The device as the worker names it, which sees no GPU but this one."""
        return "cpu" if self.gpu is None else "cuda:0"

    @property
    def label(self) -> str:
        """The device as a person names it."""
        name = "CPU" if self.gpu is None else f"GPU {self.gpu}"
        return f"{name} #{self.share}" if self.share else name


def available_gpus() -> list[str]:
    """Return the GPUs that this process may use, without importing torch.

    Raises:
        DriverError: the driver cannot be asked.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA, too, leaves out all from the first name on that is none: -1, NoDevFiles, void.
        return list(itertools.takewhile(GPU_NAME.fullmatch, map(str.strip, visible.split(","))))
    if _driver_tool() is None:
        # A container may have the GPUs without the tool that lists them.
        return [str(number) for number, _ in enumerate(DEVICE_FILES.glob("nvidia[0-9]*"))]
    return [index for index, _ in _ask_driver("index")]


def gpu_memory() -> dict[str, float]:
    """Return the memory in GiB of each GPU that has its own, by number and by UUID.

    It is empty where the driver cannot be asked.
    """
    sizes: dict[str, float] = {}
    try:
        answer = _ask_driver("index,uuid,memory.total")
    except DriverError:
        return sizes
    for index, rest in answer:
        uuid, size = (field.strip() for field in rest.split(","))
        with contextlib.suppress(ValueError):  # [N/A], of one that shares the machine's
            sizes[index] = sizes[uuid] = float(size) / 1024
    return sizes


def _driver_tool() -> str | None:
    return shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=WSL_TOOLS)


def _ask_driver(fields: str) -> list[tuple[str, str]]:
    """Return for each GPU its number and the rest of ``fields``; none without a driver.

    Raises:
        DriverError: the tool fails.
    """
    tool = _driver_tool()
    if tool is None:
        return []
    query = [tool, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        raise DriverError("no answer in 30 seconds") from None
    except OSError as error:
        raise DriverError(str(error)) from error
    if answer.returncode != 0:
        said = (answer.stdout + answer.stderr).strip().splitlines()
        raise DriverError(said[0] if said else f"exit code {answer.returncode}")
    lines = [line.partition(",") for line in answer.stdout.splitlines() if line.strip()]
    return [(index.strip(), rest.strip()) for index, _, rest in lines]


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_gpus(resources: ResourcesSpec) -> list[str]:
    """Return the GPUs that ``resources`` asks for; none: its trials run on the CPU.

    Raises:
        UserError: for a GPU that this machine does not have.
    """
    if resources.devices == "cpu":
        return []
    try:
        gpus = available_gpus()
    except DriverError as error:
        if resources.devices == "auto":
            return []
        raise UserError(
            "resources.devices: nvidia-smi must list the GPUs that are named "
            f"(it failed: {error}); mend the driver, or use `cpu`"
        ) from None
    if resources.devices == "auto":
        return gpus
    wanted = [str(number) for number in resources.devices]
    missing = [number for number in wanted if number not in gpus]
    if missing or not wanted:
        have = f"GPUs {', '.join(gpus)}" if gpus else "no GPU"
        raise UserError(
            f"resources.devices: every GPU named must exist (got {', '.join(missing) or 'none'}; "
            f"this machine has {have}); use `auto` or `cpu`"
        )
    return list(dict.fromkeys(wanted))


def unused_gpus(resources: ResourcesSpec) -> str | None:
    """Return why trials run on the CPU though there may be GPUs; None: nothing is in their way."""
    if resources.devices != "auto" or resources.engine != "local":
        return None
    try:
        available_gpus()
    except DriverError as error:
        return (
            "on the CPU, since `devices: auto` takes the GPUs that nvidia-smi lists "
            f"(it failed: {error}); mend the driver, or set `devices: cpu`"
        )
    return None


def find_slots(resources: ResourcesSpec, cpu_workers: int = 1) -> list[Slot]:
    """Return the slots of this machine that ``resources`` asks for.

    Args:
        resources: of the study file.
        cpu_workers: trials at once on the CPU where ``resources`` leaves it open.

    Raises:
        UserError: for a GPU that this machine does not have, or one too small for a trial.
    """
    devices: list[str | None] = [*find_gpus(resources)] or [None]
    counts = [_trials_on(gpu, resources, cpu_workers) for gpu in devices]
    # A core of its own is the least that a trial on the CPU can use.
    threads = resources.threads_per_trial or max(1, available_cores() // sum(counts))
    slots: list[Slot] = []
    for gpu, count in zip(devices, counts, strict=True):
        for share in range(count):
            alone = count == 1
            slots.append(Slot(len(slots), gpu, threads, 0 if alone else share + 1, count))
    return slots


def _trials_on(gpu: str | None, resources: ResourcesSpec, cpu_workers: int) -> int:
    """Return how many trials run at once on ``gpu`` (None: the CPU)."""
    given, each = resources.trials_per_device, resources.memory_per_trial
    wanted = given or (cpu_workers if gpu is None else 1)
    if each is None:
        return wanted
    has = psutil.virtual_memory().total / GIB if gpu is None else _memory_of(gpu)
    if has is None:
        if given is None:
            raise UserError(
                "resources.memory_per_trial: the GPU's memory must be known (got GPU "
                f"{gpu}, of which nvidia-smi tells none); give trials_per_device instead"
            )
        return given
    fit = int(has / each)
    name = "this machine" if gpu is None else f"GPU {gpu}"
    if fit < (given or 1):
        trials = "a trial" if (given or 1) == 1 else f"{given} trials"
        raise UserError(
            f"resources.memory_per_trial: {trials} of {each:g} GiB must fit (got {name} with "
            f"{has:.1f} GiB); lower it, or trials_per_device"
        )
    if given is None and gpu is not None:
        return fit
    return min(wanted, fit)


def _memory_of(gpu: str) -> float | None:
    """Return the memory of ``gpu`` in GiB; None: it is not known."""
    sizes = gpu_memory()
    if gpu.isdigit() and _order() != BY_BUS and len(set(sizes.values())) > 1:
        return None  # nvidia-smi's number is another GPU's
    return sizes.get(gpu)


def _order() -> str:
    """Return how GPUs are numbered: as the user says who has named some, else by the bus."""
    named = "CUDA_VISIBLE_DEVICES" in os.environ
    return (os.environ.get("CUDA_DEVICE_ORDER") if named else None) or BY_BUS


def worker_environment(slot: Slot) -> dict[str, str]:
    """Return the whole environment of the worker on ``slot``: set before it imports anything."""
    confined = {
        "CUDA_VISIBLE_DEVICES": slot.gpu or "",
        "CUDA_DEVICE_ORDER": _order(),
        "OMP_NUM_THREADS": str(slot.threads),
        "MKL_NUM_THREADS": str(slot.threads),
        # cuBLAS repeats its results only with a workspace of fixed size.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1",
    }
    # Idle OpenMP threads spin by default: 5 % faster on a quiet machine, several times slower on
    # one that has anything else to do.
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **confined}


def warm_up(spec: StudySpec) -> None:
    """Begin, if workers are this machine's, what their start waits longest for: their imports."""
    if spec.resources.engine == "local":
        searched = spec.space.get("model.name")
        names = [spec.model.name] if spec.model else []
        names += [str(name) for name in (searched.values or ())] if searched else []
        libraries = dict.fromkeys(name.partition(":")[0] for name in names)
        modules = [LOADED_BY[library] for library in libraries if library in LOADED_BY]
        nursery.prepare(worker_environment(Slot(0, None, 1)), modules)
