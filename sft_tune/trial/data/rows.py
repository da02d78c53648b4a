"""Rows of arrays on a device: taken there where the arrays lie there whole, else sent to it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft_tune.trial.data.arrays import UNTAGGED, AudioSplit, Ragged, TextSplit
from sft_tune.trial.data.resident import find


class Rows:
    """Which examples a batch has, and the device that it is to be on."""

    def __init__(self, indices: Tensor, device: torch.device) -> None:
        """Take the examples ``indices``, int64 [b], on the CPU."""
        self.host: NDArray[np.int64] = indices.numpy()
        self.device = device

    @cached_property
    def there(self) -> Tensor:
        """The indices on the device, sent once."""
        return moved(self.host, self.device)

    def of(self, array: NDArray[Any]) -> Tensor:
        """Return these rows of ``array`` [n, ...] on the device, [b, ...]."""
        whole = find(array, self.device)
        if whole is not None:
            return whole.index_select(0, self.there)
        return moved(np.take(array, self.host, axis=0), self.device)


class Padded:
    """Rows of texts or sounds end to end as a matrix, filled up to the longest of them."""

    def __init__(self, rows: Rows, offsets: NDArray[np.int64], left: bool = False) -> None:
        """Lay out ``rows`` of what begins and ends at ``offsets``; padding stands ``left`` or not.

        How wide it is is known on the CPU: to ask the device would be to wait for it.
        """
        self._device = rows.device
        starts = offsets[rows.host]
        lengths = offsets[rows.host + 1] - starts
        self.longest = int(lengths.max(initial=0))
        first = self.longest - lengths if left else np.zeros_like(lengths)
        self._layout = np.stack([first, first + lengths, starts - first])

    def filled(self, flat: NDArray[Any], padding: int) -> Tensor:
        """Return the rows of ``flat`` [total] on the device, int64 [b, longest]."""
        whole = find(flat, self._device)
        if whole is not None:
            return self.taken(whole).to(torch.int64).masked_fill_(~self._there[0], padding)
        mask, places = self._on_the_cpu
        out = np.full(mask.shape, padding, dtype=np.int64)
        out[mask] = flat[places]
        return moved(out, self._device)

    def taken(self, whole: Tensor) -> Tensor:
        """Return the rows of ``whole`` [total, ...], which is on the device, [b, longest, ...].

        Where padding is to be stands something else.
        """
        places = self._there[1]
        return whole.index_select(0, places.flatten()).view(*places.shape, *whole.shape[1:])

    def mask(self, flat: NDArray[Any]) -> Tensor:
        """Return where rows of ``flat`` are no padding, int64 [b, longest]."""
        if find(flat, self._device) is None:
            return moved(self._on_the_cpu[0].astype(np.int64), self._device)
        return self._there[0].to(torch.int64)

    @cached_property
    def _on_the_cpu(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Where there is no padding, [b, longest], and the places in the flat array of all that."""
        first, end, shift = self._layout[:, :, None]
        columns = np.arange(self.longest)
        mask = (columns >= first) & (columns < end)
        return mask, (columns + shift)[mask]

    @cached_property
    def _there(self) -> tuple[Tensor, Tensor]:
        """The same on the device, both [b, longest]; the place of padding is the first."""
        first, end, shift = moved(self._layout, self._device)[:, :, None]
        columns = torch.arange(self.longest, device=self._device)
        mask = (columns >= first) & (columns < end)
        return mask, (columns + shift).masked_fill_(~mask, 0)


def texts(split: TextSplit, rows: Rows) -> tuple[dict[str, Tensor], Tensor]:
    """Return the inputs of a model for ``rows`` of ``split``, and their targets."""
    padded = Padded(rows, split.offsets, split.pad_left)
    inputs = {"input_ids": padded.filled(split.tokens, split.pad_id)}
    if split.segments is None:
        inputs["attention_mask"] = padded.mask(split.tokens)
    if split.token_types is not None:
        inputs["token_type_ids"] = padded.filled(split.token_types, split.pad_type)
    if split.segments is not None:
        inputs["segments"] = padded.filled(split.segments, 0)
    if split.answers is not None:
        inputs["labels"] = _answers(split.answers, rows)
        return inputs, inputs["labels"]
    if split.tags is not None:
        return inputs, padded.filled(split.tags, UNTAGGED)
    return inputs, rows.of(split.targets)


def _answers(answers: Ragged, rows: Rows) -> Tensor:
    """Return the rows of ``answers``, filled up with what does not count."""
    return Padded(rows, answers.offsets).filled(answers.flat, UNTAGGED)


def sounds(split: AudioSplit, rows: Rows) -> dict[str, Tensor]:
    """Return the inputs of a model for ``rows`` of ``split``: padded with silence."""
    padded = Padded(rows, split.offsets)
    whole = find(split.values, rows.device)
    if whole is None:
        values = np.zeros((len(rows.host), padded.longest, *split.values.shape[1:]), np.float32)
        for i, row in enumerate(rows.host.tolist()):
            start, end = split.offsets[row : row + 2]
            values[i, : end - start] = split.values[start:end]
        inputs = {split.key: moved(values, rows.device)}
    else:
        silent = padded.mask(split.values) == 0
        silent = silent.view(*silent.shape, *[1] * (whole.ndim - 1))
        inputs = {split.key: padded.taken(whole).masked_fill_(silent, 0)}
    if split.masked:
        inputs["attention_mask"] = padded.mask(split.values)
    return inputs


def moved(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return ``array`` on ``device``, without waiting for it."""
    return sent(torch.from_numpy(array), device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return ``tensor``, which is on the CPU, on ``device``, without waiting for it."""
    if device.type != "cuda":
        return tensor.to(device)
    # From pinned memory the copy runs beside the computation.
    return tensor.pin_memory().to(device, non_blocking=True)
