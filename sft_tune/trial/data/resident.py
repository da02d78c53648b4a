"""Arrays that lie whole on a GPU, so that batches are gathered there and not copied to it.

A worker keeps those of the data set that it last trained on: trials of a study mostly share it.
Batches are the same bits either way. Where memory runs out these copies are the first to go.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from sft_tune.trial.data.arrays import AudioSplit, FeatureSplit, ImageSplit, Split, TextSplit

SHARE = 0.25
"""Of the memory that is free for this process: the rest is for what trains."""
CHUNK = 64 * 2**20
"""Bytes that are copied at once: an array may be larger than the machine's own memory."""


@dataclass
class _Held:
    """What one device has of one data set.

    Attributes:
        identity: of the data set.
        tensors: its arrays by split and name.
        by_array: the same by the ids of arrays that trials have opened, as long as these are there.
    """

    identity: str
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    by_array: dict[int, tuple[weakref.ref[NDArray[Any]], Tensor]] = field(default_factory=dict)

    def name(self, array: NDArray[Any], tensor: Tensor) -> None:
        """Have ``tensor`` found by ``array``."""
        place, known = id(array), self.by_array
        # Another array may come to have the id of one that is gone.
        known[place] = (weakref.ref(array, lambda _: known.pop(place, None)), tensor)


_HELD: dict[tuple[str, int], _Held] = {}


def hold(
    identity: str,
    splits: Mapping[str, Split | FeatureSplit],
    device: torch.device,
    *,
    spoken_for: int = 0,
    most: int | None = None,
) -> None:
    """Have ``splits`` whole on ``device``, as far as there is room; what else is held goes.

    What is there already, of an earlier trial, is used again. Images with boxes are not held.

    Args:
        identity: of the data set: the same one has the same arrays. Empty: it has none, and
            nothing is held.
        splits: by name, the one that is needed most first; each is held whole or not at all.
        device: of those who will `find` it.
        spoken_for: bytes that the caller is going to allocate.
        most: bytes; None: on a GPU `SHARE` of what is free, elsewhere nothing.
    """
    held = _HELD.get(_key(device))
    if held is not None and held.identity != identity:
        release(device)
        held = None
    if not identity:
        return
    held = held or _Held(identity)
    room = _room(device, spoken_for) if most is None else most - held_bytes(device)
    for name, split in splits.items():
        arrays = arrays_of(split)
        if name not in held.tensors:
            size = sum(array.nbytes for array in arrays.values())
            if not arrays or size > room:
                continue
            held.tensors[name] = {key: _copy(array, device) for key, array in arrays.items()}
            room -= size
        for key, array in arrays.items():
            held.name(array, held.tensors[name][key])
    if held.tensors:
        _HELD[_key(device)] = held


def find(array: NDArray[Any], device: torch.device) -> Tensor | None:
    """Return ``array`` as it lies on ``device``; None where it does not."""
    held = _HELD.get(_key(device))
    found = None if held is None else held.by_array.get(id(array))
    return None if found is None else found[1]


def release(device: torch.device) -> bool:
    """Let go of what is held on ``device``; tell whether that was anything."""
    held = _HELD.pop(_key(device), None)
    if held is None:
        return False
    # It is in a cycle: else the memory would be free only when the collector comes.
    held.tensors.clear()
    held.by_array.clear()
    return True


def held_bytes(device: torch.device) -> int:
    """Return how many bytes of ``device`` are held."""
    held = _HELD.get(_key(device))
    parts = [] if held is None else held.tensors.values()
    return sum(tensor.nbytes for tensors in parts for tensor in tensors.values())


def arrays_of(split: Split | FeatureSplit) -> dict[str, NDArray[Any]]:
    """Return the arrays that batches of ``split`` are gathered from; none of those not held."""
    arrays: dict[str, NDArray[Any] | None] = {}
    if isinstance(split, ImageSplit):
        arrays = {"pixels": split.pixels, "masks": split.masks}
    elif isinstance(split, FeatureSplit):
        arrays = {"features": split.features}
    elif isinstance(split, AudioSplit):
        arrays = {"values": split.values}
    elif isinstance(split, TextSplit):
        arrays = {
            "tokens": split.tokens,
            "token_types": split.token_types,
            "segments": split.segments,
            "tags": split.tags,
            "answers": None if split.answers is None else split.answers.flat,
        }
    if arrays:
        arrays["targets"] = split.targets
    return {name: array for name, array in arrays.items() if array is not None}


def _key(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0


def _room(device: torch.device, spoken_for: int) -> int:
    """Return how many more bytes may be held on ``device``."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    # Where trials share a GPU each may take its part, and no more is free for it than that.
    allowed = int(total * torch.cuda.get_per_process_memory_fraction(device))
    free = min(free, allowed - torch.cuda.memory_reserved(device))
    return int(SHARE * (free - spoken_for))


def _copy(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return ``array`` on ``device``."""
    dtype = torch.from_numpy(array[:0].copy()).dtype
    whole = torch.empty(array.shape, dtype=dtype, device=device)
    rows = max(1, CHUNK // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        # A copy in memory of its own: mapped arrays are read-only.
        whole[start : start + rows].copy_(torch.from_numpy(array[start : start + rows].copy()))
    return whole
