"""State dicts: read without running code from them, checked against the model, loaded."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sft_tune.errors import MissingModelError, ModelError
from sft_tune.trial.heads import in_head

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# Where training scripts put the state dict inside what they save, and what wrappers prepend.
NESTED_UNDER = ("state_dict", "model_state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.")
SHOWN = 3

Stamp = tuple[str, int, int]


def is_path(weights: str) -> bool:
    """Tell whether ``weights`` of a model section names a file."""
    return weights.endswith(SUFFIXES) or "/" in weights or "\\" in weights


def file_stamp(path: Path) -> Stamp:
    """Return what changes when the file does: its path, size and time of change.

    Raises:
        ModelError: when there is no such file.
    """
    if not path.is_file():
        raise MissingModelError(
            f"model.weights: no file {path}; give the path of a state dict, or none"
        )
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in ``path`` (.safetensors, or torch's format), floats as float32.

    Nothing but tensors is unpickled.

    Raises:
        ModelError: when the file is missing, unreadable, or holds no state dict.
    """
    file_stamp(path)
    try:
        if path.suffix == ".safetensors":
            loaded: object = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise ModelError(f"model.weights: {path} cannot be read as a state dict: {first}") from None
    for key in NESTED_UNDER:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ModelError(f"model.weights: {path} holds no state dict (names of tensors to tensors)")
    return {_bare(str(name)): as_float32(tensor) for name, tensor in loaded.items()}


def as_float32(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float32 when it holds real numbers, else as it is."""
    return tensor.float() if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class Misfit:
    """The tensors of a checkpoint that do not fit a model, the head's left out."""

    missing: Sequence[str]
    unexpected: Sequence[str]
    reshaped: Sequence[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def error(self, weights: str, model: str) -> ModelError:
        """Return the error that names the first few tensors of each kind, and counts them."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.reshaped,
        }
        found = "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:SHOWN])}{', ...' if names[SHOWN:] else ''})"
            for kind, names in kinds.items()
            if names
        )
        return ModelError(
            f"model.weights: {weights} does not fit {model}: tensors {found}; "
            "give weights of this architecture, or another model.name"
        )


def load_backbone(module: nn.Module, state: Mapping[str, Tensor], head: tuple[str, ...]) -> Misfit:
    """Load all of ``state`` but the ``head`` into ``module``, when all of it fits.

    Returns:
        What does not fit; then nothing was loaded.
    """
    wanted = {k: v for k, v in module.state_dict().items() if not in_head(k, head)}
    given = {k: v for k, v in state.items() if not in_head(k, head)}
    misfit = Misfit(
        # A counter that older files lack, and that only batch norm without momentum reads.
        missing=[k for k in wanted if k not in given and not k.endswith("num_batches_tracked")],
        unexpected=[k for k in given if k not in wanted],
        reshaped=[
            f"{k}: file {tuple(given[k].shape)}, model {tuple(wanted[k].shape)}"
            for k in wanted
            if k in given and given[k].shape != wanted[k].shape
        ],
    )
    if not misfit:
        module.load_state_dict(given, strict=False)
    return misfit


def _bare(name: str) -> str:
    """Return ``name`` without what DataParallel and torch.compile prepend."""
    for prefix in WRAPPERS:
        name = name.removeprefix(prefix)
    return name
