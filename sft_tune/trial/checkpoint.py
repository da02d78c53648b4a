"""Checkpoint files: safetensors with a JSON header and a checksum, written atomically.

A file is written under a temporary name, synced to the disk and renamed, so that under its own
name it is whole or absent. The checksum finds what the disk damaged later.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

HEADER = "sft_tune"
CHECKSUM = "crc32"
OS_ERROR = re.compile(r"os error (\d+)")

Header = dict[str, Any]
Found = tuple[dict[str, Tensor], Header]


def write(
    path: Path, tensors: Mapping[str, Tensor], header: Header, *, previous: Path | None = None
) -> None:
    """Write ``tensors`` and ``header`` (plain JSON values) to ``path``.

    The file that was there before is kept as ``previous`` where that is given.

    Raises:
        OSError: when it cannot be written; what was there before is still there.
    """
    own = _storable(tensors)
    text = json.dumps(header)
    metadata = {"format": "pt", HEADER: text, CHECKSUM: _checksum(own, text)}
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        save_file(own, temporary, metadata=metadata)
        # The library makes it for its owner alone; others may be meant to go on with the trial.
        temporary.chmod(0o666 & ~_umask())
        _sync(temporary)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        if os.name == "posix":
            # The new name itself must outlive a power cut. Other systems cannot sync a folder.
            _sync(path.parent)
    except SafetensorError as error:
        _remove(temporary)
        raise _os_error(error, path) from error
    except OSError:
        _remove(temporary)
        raise


@functools.cache
def _umask() -> int:
    """Return what the user keeps from others in new files; asking sets it for a moment."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read(path: Path) -> Found:
    """Return the tensors (on the CPU) and the header of the file that `write` wrote.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is torn, damaged, or not written by `write`.
    """
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "no checkpoint", str(path))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if HEADER not in metadata:
        raise ValueError(f"{path} was not written by sft_tune")
    text = metadata[HEADER]
    if metadata.get(CHECKSUM) != _checksum(tensors, text):
        raise ValueError(f"{path} is damaged: its checksum is wrong")
    header: Header = json.loads(text)
    return tensors, header


def read_last(path: Path, previous: Path) -> tuple[Found | None, list[str]]:
    """Return the last good one of two checkpoints (None without one), and what is wrong in words.

    Missing files are nothing wrong.
    """
    wrong: list[str] = []
    for candidate in (path, previous):
        try:
            return read(candidate), wrong
        except FileNotFoundError:
            continue
        except ValueError as error:
            wrong.append(str(error))
    return None, wrong


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` on the CPU, contiguous, and none sharing memory with another."""
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        stored = tensor.detach().cpu().contiguous()
        place = stored.untyped_storage().data_ptr()
        own[name] = stored.clone() if place in seen else stored
        seen.add(place)
    return own


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _sync(path: Path) -> None:
    """Return when the disk has the file or folder ``path``."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Delete what a failed write left: it would hold the space that the disk lacks."""
    path.unlink(missing_ok=True)


def _os_error(error: SafetensorError, path: Path) -> OSError:
    """Return the system's error that safetensors wrapped."""
    found = OS_ERROR.search(str(error))
    number = int(found.group(1)) if found else errno.EIO
    return OSError(number, os.strerror(number), str(path))
