"""Device slots: the places where one trial runs, and the environment that confines it there."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from sft_tune.errors import UserError
from sft_tune.spec.study import ResourcesSpec


@dataclass(frozen=True)
class Slot:
    """One place for one trial.

    Attributes:
        index: number of the slot on this machine, from 0.
        gpu: the GPU as the driver numbers it (or its UUID); None: the CPU.
        threads: CPU threads of the trial.
    """

    index: int
    gpu: str | None
    threads: int

    @property
    def device(self) -> str:
        """The device as the worker names it, which sees no GPU but this one."""
        return "cpu" if self.gpu is None else "cuda:0"

    @property
    def label(self) -> str:
        """The device as a person names it."""
        return "CPU" if self.gpu is None else f"GPU {self.gpu}"


def available_gpus() -> list[str]:
    """Return the GPUs that this process may use, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return []
    return answer.stdout.split() if answer.returncode == 0 else []


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_slots(resources: ResourcesSpec) -> list[Slot]:
    """Return the slots of this machine that ``resources`` asks for; at present, one.

    Raises:
        UserError: for a GPU that this machine does not have.
    """
    threads = resources.threads_per_trial or available_cores()
    if resources.devices == "cpu":
        return [Slot(0, None, threads)]
    gpus = available_gpus()
    if resources.devices == "auto":
        return [Slot(0, gpus[0] if gpus else None, threads)]
    wanted = [str(number) for number in resources.devices]
    missing = [number for number in wanted if number not in gpus]
    if missing or not wanted:
        have = f"GPUs {', '.join(gpus)}" if gpus else "no GPU"
        raise UserError(
            f"resources.devices: every GPU named must exist (got {', '.join(missing) or 'none'}; "
            f"this machine has {have}); use `auto` or `cpu`"
        )
    return [Slot(0, wanted[0], threads)]


def worker_environment(slot: Slot) -> dict[str, str]:
    """Return the whole environment of the worker on ``slot``: set before it imports anything."""
    confined = {
        "CUDA_VISIBLE_DEVICES": slot.gpu or "",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "OMP_NUM_THREADS": str(slot.threads),
        "MKL_NUM_THREADS": str(slot.threads),
        # cuBLAS repeats its results only with a workspace of fixed size.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONUNBUFFERED": "1",
    }
    # Idle OpenMP threads spin by default: 5 % faster on a quiet machine, several times slower on
    # one that has anything else to do.
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **confined}
