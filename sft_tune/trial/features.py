"""What a frozen backbone makes of each example, computed once and kept like prepared data.

Where only the head is trained and nothing random stands before it, the backbone gives the same
numbers in every epoch of every trial. They are what enters the first module of the head; the
head is then the chain of its modules, which is tried on real examples before it is believed.
A trial that trains the head alone at first is on features so long (see `Trainee.enter`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_tune.errors import SftTuneError
from sft_tune.spec.features import TASKS, in_the_way
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data import FeatureSplit, Split, evaluation_batches, gather
from sft_tune.trial.data.arrays import array_path
from sft_tune.trial.data.cache import key_of, open_or_build, prepared_root, save
from sft_tune.trial.device import autocast
from sft_tune.trial.lengths import in_like_lengths
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.portions import Portion, within_memory
from sft_tune.trial.trainee import Trainee

# Part of every key: raise it when the same model and data make other features.
FORMAT = 1
MOST_BYTES = 4 * 2**30
LEAST_EPOCHS = 0.5
"""Of a first phase: features cost one, and from the third trial on a study has them back."""
TRIED = 4
EVERY_STEP = "the frozen backbone is run in every step"
# Settings of transformers that change nothing in evaluation, or only the head.
OF_THE_HEAD = ("id2label", "label2id", "num_labels")


@dataclass(frozen=True)
class Entrance:
    """Where the head begins.

    Attributes:
        chain: the modules of the head, in the order in which they are called.
        first_only: whether the head reads only the first position of each example.
        shape: of what enters it of one example.
    """

    chain: tuple[str, ...]
    first_only: bool
    shape: tuple[int, ...]

    def bytes_of(self, splits: Mapping[str, Split]) -> int:
        """Return what the features of ``splits`` take."""
        return 4 * math.prod(self.shape) * sum(map(len, splits.values()))

    def too_large(self, splits: Mapping[str, Split]) -> str:
        """Return what to say where those of ``splits`` are too many to keep; else nothing."""
        size = self.bytes_of(splits)
        if size <= MOST_BYTES:
            return ""
        return f"the backbone's features were not kept: {size / 2**30:.1f} GiB are too many"


def use_features(trainee: Trainee, cache: Path, batch_size: int, *, test: bool = False) -> str:
    """Let ``trainee`` train and be evaluated on cached features, where it can be.

    Args:
        trainee: gets `features`, and the chain of its head.
        cache: folder of prepared data.
        batch_size: examples at once where features are made.
        test: for the test split instead, which a search neither reads nor computes anything of.

    Returns:
        A note where the features could not be kept; else nothing.
    """
    entrance = find_entrance(trainee)
    if isinstance(entrance, str):
        return entrance
    splits = {"train": trainee.data.train, "validation": trainee.data.validation}
    if test:
        splits = {} if trainee.data.test is None else {"test": trainee.data.test}
    if note := entrance.too_large(splits):
        return note
    size = entrance.bytes_of(splits)

    def build(folder: Path) -> dict[str, Any]:
        for name, split in splits.items():
            _write(trainee, entrance, split, array_path(folder, name, "features"), batch_size)
        return {"kind": "features", "bytes": size}

    config = trainee.config
    about = f"{config.data.source}: features of {config.model.name}"
    try:
        key = key_of_features(trainee, entrance, test=test)
        entry = open_or_build(prepared_root(cache), key, build, about=about)
    except SftTuneError as error:
        return f"the backbone's features were not kept: {error}"
    trainee.model.chain = entrance.chain
    trainee.features = {
        name: FeatureSplit(
            np.load(array_path(entry.folder, name, "features"), mmap_mode="r"),
            split.targets,
            entry.folder.name,
        )
        for name, split in splits.items()
    }
    return ""


def find_entrance(trainee: Trainee) -> Entrance | str:
    """Return where the head begins of a ``trainee`` that can be on features now.

    Else what to say of it, which is nothing where nobody expects it to be.
    """
    frozen, config = trainee.config.training.freeze == "backbone", trainee.config
    if not _is_fixed(trainee):
        settings = in_the_way(config.training)
        return _told(settings) if frozen and settings and config.task in TASKS else ""
    trainee.model.module.eval()
    entrance = _find_chain(trainee)
    if entrance is None:
        how = f"the head of {config.model.name} is more than a chain of modules"
        return f"{EVERY_STEP}: {how}" if frozen else ""
    return entrance


def is_drawn(model: ModelSpec) -> bool:
    """Tell whether a backbone has random weights, others in every trial."""
    return model.weights == "none" or bool(model.reinit_blocks)


def _told(settings: dict[str, str]) -> str:
    """Return what to say of ``settings`` that are in the way."""
    are = " and ".join(f"training.{name} ({value})" for name, value in settings.items())
    return f"{EVERY_STEP}, because of {are}"


def _is_fixed(trainee: Trainee) -> bool:
    """Tell whether the backbone gives an example the same features throughout the trial."""
    config, training = trainee.config, trainee.config.training
    return (
        config.task in TASKS
        and bool(trainee.data.identity)
        and trainee.freezing.only_head
        and (training.freeze == "backbone" or _repays(trainee))
        and config.model.lora_rank is None
        and not in_the_way(training)
    )


def _repays(trainee: Trainee) -> bool:
    """Tell whether a first phase is worth features: long enough, and of the same in every trial."""
    training = trainee.config.training
    return (
        not is_drawn(trainee.config.model)
        and trainee.freezing.head_alone * training.epochs >= LEAST_EPOCHS
    )


@torch.inference_mode()
def _find_chain(trainee: Trainee) -> Entrance | None:
    """Return where the head begins; None where it is more than a chain of its modules."""
    model, split = trainee.model, trainee.data.train
    indices = torch.arange(min(TRIED, len(split)))
    inputs = gather(split, indices, trainee.device, normalize=model.normalize).inputs
    calls: list[tuple[str, Any]] = []

    def note(name: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        plain = len(given) == 1 and not named and isinstance(given[0], Tensor)
        calls.append((name, given[0] if plain else None))

    handles = [
        model.module.get_submodule(name).register_forward_pre_hook(
            lambda _, given, named, name=name: note(name, given, named), with_kwargs=True
        )
        for name in model.head
    ]
    try:
        with autocast(trainee.device, trainee.dtype):
            logits = model.logits(inputs)
    finally:
        for handle in handles:
            handle.remove()
    chain = tuple(name for name, _ in calls)
    if not calls or calls[0][1] is None or len(set(chain)) != len(chain):
        return None
    entering: Tensor = calls[0][1]
    for first_only in (False, True) if entering.ndim == 2 else (True, False):
        part = entering[:, :1] if first_only else entering
        # What varies in length with the batch cannot be kept as one array.
        if (not first_only and entering.ndim == 3) or (first_only and entering.ndim != 3):
            continue
        if _agrees(trainee, chain, part, logits):
            return Entrance(chain, first_only, tuple(part.shape[1:]))
    return None


def _agrees(trainee: Trainee, chain: tuple[str, ...], entering: Tensor, logits: Tensor) -> bool:
    try:
        with autocast(trainee.device, trainee.dtype):
            found = trainee.model.head_logits(chain, entering)
    except (RuntimeError, IndexError, TypeError):
        return False
    return found.shape == logits.shape and torch.allclose(found, logits, rtol=1e-4, atol=1e-5)


class _EnoughError(Exception):
    """Ends a pass where the head begins."""


@torch.inference_mode()
def _features(trainee: Trainee, entrance: Entrance, split: Split, indices: Tensor) -> Tensor:
    """Return what enters the head for the examples ``indices``, on the device."""
    model: BuiltModel = trainee.model
    inputs = gather(split, indices, trainee.device, normalize=model.normalize).inputs
    found: list[Tensor] = []

    def keep(_: Any, given: tuple[Any, ...]) -> None:
        found.append(given[0])
        raise _EnoughError

    handle = model.module.get_submodule(entrance.chain[0]).register_forward_pre_hook(keep)
    try:
        with autocast(trainee.device, trainee.dtype):
            model.logits(inputs)
    except _EnoughError:
        pass
    finally:
        handle.remove()
    return found[0][:, :1] if entrance.first_only else found[0]


def make_features(
    trainee: Trainee, entrance: Entrance, split: Split, indices: Tensor, portion: Portion
) -> Tensor:
    """Return what enters the head for ``indices``, float32 on the CPU, in parts that fit.

    ``portion`` is how many examples go through the backbone at once; it keeps what fits.
    """

    def made(sizes: list[int]) -> list[Tensor]:
        parts = indices.split_with_sizes(in_like_lengths(split, indices, sizes, trainee.device))
        return [_features(trainee, entrance, split, part).float().cpu() for part in parts]

    return torch.cat(within_memory(portion, len(indices), made, device=trainee.device))


def _write(trainee: Trainee, entrance: Entrance, split: Split, path: Path, batch_size: int) -> None:
    """Write the features of ``split``; those of texts are made in batches of like length."""
    rows = np.empty((len(split), *entrance.shape), dtype=np.float32)
    portion = Portion()
    for indices in evaluation_batches(split, batch_size):
        rows[indices.numpy()] = make_features(trainee, entrance, split, indices, portion).numpy()
    save(path, rows)


def key_of_features(trainee: Trainee, entrance: Entrance, *, test: bool = False) -> str:
    """Return the key of the entry that they are kept in, those of ``test`` in one of their own."""
    model, data = trainee.model, trainee.data
    settings = {
        key: value
        for key, value in (model.config or {}).items()
        if key not in OF_THE_HEAD and "drop" not in key
    }
    return key_of(
        {
            "features": FORMAT,
            "data": [data.identity, *([data.test_identity] if test else [])],
            "model": trainee.config.model.name,
            "settings": settings,
            "weights": _digest(model),
            "normalize": model.normalize,
            "arguments": model.extra,
            "entrance": [entrance.chain, entrance.first_only],
            "dtype": "tf32" if trainee.config.training.precision == "tf32" else str(trainee.dtype),
            "device": trainee.device.type,
            "torch": torch.__version__,
        }
    )


def _digest(model: BuiltModel) -> str:
    """Return a digest of all tensors of the backbone."""
    state = hashlib.blake2b(digest_size=16)
    for name, tensor in _backbone(model):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _backbone(model: BuiltModel) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in model.module.state_dict().items():
        if not model.in_head(name):
            yield name, tensor
