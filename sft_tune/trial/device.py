"""The device of a trial: its precision, its memory, and when that has run out."""

from __future__ import annotations

import gc
import platform
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psutil
import torch
from torch import Tensor

from sft_tune.errors import UserError
from sft_tune.trial.data.resident import held_bytes, release

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# What torch's, C++'s and Python's CPU allocators say, and CUDA and its libraries where they
# allocate without torch; torch's own GPU allocator has `torch.OutOfMemoryError`. A library that
# has no room for its handle is "not initialized", one that has none for any way to do a
# convolution is "unable to find an engine". They may say so for other reasons, too, but seldom.
OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|can't allocate memory|not enough memory|std::bad_alloc"
    r"|CUDA (driver )?error: out of memory|CUDA ran out of memory"
    r"|CU(BLAS|DNN)_STATUS_(ALLOC_FAILED|NOT_INITIALIZED)"
    r"|(GET|FIND) was unable to find an engine"
)
# What a process takes of a GPU besides tensors: CUDA's context and the code of its libraries.
CONTEXT_BYTES = 640 * 2**20


def open_device(name: str) -> torch.device:
    """Return the device ``name`` (``cpu``, ``cuda:0``).

    Raises:
        UserError: when this machine has no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device {name!r} is unknown; give cpu, or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UserError(f"device {name!r} is not here: torch sees {count} GPUs; use cpu")
    return device


def resolve_precision(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype that matrix products run in (of TF32, which is none: see `use_tf32`).

    ``auto`` is bf16 on a GPU with hardware for it, else fp32 (bf16 is slower on most CPUs).
    """
    if precision != "auto":
        return DTYPES[precision]
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def is_reduced(precision: Precision, device: torch.device) -> bool:
    """Tell whether matrix products run in less than single precision."""
    rounded = precision == "tf32" and device.type == "cuda"
    return rounded or resolve_precision(precision, device) is not torch.float32


def use_tf32(precision: Precision, device: torch.device) -> None:
    """Let what is multiplied in single precision on a GPU be rounded to TF32, or not.

    TF32 keeps 10 bits of 23 and is several times faster. ``fp32`` is full single precision; with
    the others TF32 serves what of a trial does not run in half precision.
    """
    if device.type == "cuda":
        allowed = precision != "fp32"
        _allow_tf32(allowed, allowed)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Multiply in full single precision inside: where numbers are compared, TF32 is too coarse."""
    if device.type != "cuda":
        yield
        return
    # torch lets cuDNN's convolutions round unless it is told otherwise.
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    _allow_tf32(False, False)
    try:
        yield
    finally:
        _allow_tf32(*before)


def _allow_tf32(convolutions: bool, products: bool) -> None:
    with warnings.catch_warnings():
        # Some versions want newer settings, of which others say that the two must not be mixed.
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.backends.cuda.matmul.allow_tf32 = products


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which the forward pass runs in ``dtype`` where that is safe."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)


@torch.no_grad()
def like(own: Tensor, tensor: Tensor) -> Tensor:
    """Return a copy of ``tensor`` on the device of ``own``, laid out in memory as that is."""
    return torch.empty_like(own, dtype=tensor.dtype).copy_(tensor)


@contextmanager
def memory_of_its_own(device: torch.device) -> Iterator[None]:
    """Count peak memory from here; afterwards give the device's memory back.

    But for the data that is held there for the next trial.
    """
    _reset_peak(device)
    before = _allocated(device) if device.type == "cuda" else 0
    try:
        yield
    finally:
        if device.type == "cuda":
            # Models are freed when they are left: only one in a reference cycle needs the
            # collector, which takes half a second.
            if _allocated(device) > before:
                gc.collect()
            torch.cuda.empty_cache()


def peak_memory(device: torch.device) -> int:
    """Return the peak in bytes: of tensors on a GPU, of the whole process on the CPU.

    Data that is held on the GPU is among it, though it would make room where memory runs out.
    Where the system keeps no peak (other than Linux) it is what the process uses now.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether ``error`` says that the device's memory, or the machine's, ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(OUT_OF_MEMORY.search(str(error)))


def memory_report(error: BaseException, device: torch.device) -> str:
    """Return in words what was asked for when memory ran out, and what there is."""
    asked = str(error).strip().split("\n")[0]
    peak = f"peak {peak_memory(device) / 2**30:.2f} GiB"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        peak += f", {free / 2**30:.2f} of {total / 2**30:.2f} GiB free"
    return f"{asked} ({peak})"


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to, and the data that is held, after memory ran out."""
    release(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def describe_device(device: torch.device) -> str:
    """Return its name and how much memory this process may take of it, in words."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        total = torch.cuda.get_device_properties(device).total_memory
        allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
    else:
        name = f"cpu {platform.machine()}"
        allowed = psutil.virtual_memory().total
        if hasattr(psutil, "RLIMIT_AS"):
            limit, _ = psutil.Process().rlimit(psutil.RLIMIT_AS)
            allowed = min(allowed, limit) if limit >= 0 else allowed
    return f"{name}, {allowed} bytes"


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        # To reset a peak does not begin CUDA, and fails in a process that has not.
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        # Linux: 5 sets the process's peak to what it uses now. Elsewhere it has no such file.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def confine(threads: int, memory_share: float | None) -> None:
    """Keep the process to its share: the slot may be another one than it was made for."""
    torch.set_num_threads(threads)
    if memory_share is not None and memory_share < 1:
        # Else one trial's cached blocks are its neighbour's out-of-memory.
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share_of_tensors(memory_share, total))


def share_of_tensors(share: float, total: int) -> float:
    """Return the part of a GPU of ``total`` bytes that tensors may take of a process's ``share``.

    It is half the share at least: where many share a small GPU, some run out of memory then.
    """
    return max(share / 2, share - CONTEXT_BYTES / total)


def kept_bytes(device: str) -> int:
    """Return what this process still holds of its device after a trial, in bytes.

    The data that it holds for the next one is not among it: that does not grow by itself.
    """
    gc.collect()
    if device == "cpu":
        return int(psutil.Process().memory_info().rss)
    torch.cuda.empty_cache()
    return _allocated(torch.device(device))


def _allocated(device: torch.device) -> int:
    """Return the bytes of a GPU's tensors, but for the data that is held."""
    return torch.cuda.memory_allocated(device) - held_bytes(device)


def wait_for(device: torch.device) -> None:
    """Return when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
