"""A fine-tuned model back from its checkpoint file alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sft_tune.errors import ModelError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.tasks import TASKS
from sft_tune.trial import checkpoint
from sft_tune.trial.device import open_device
from sft_tune.trial.files import copy_of
from sft_tune.trial.lora import inject, wrapped_layers


def load_checkpoint(path: Path, device: str = "cpu") -> nn.Module:
    """Return the fine-tuned module of a trial's ``best.safetensors``, in evaluation mode.

    Its attribute ``labels`` holds the names of the classes in index order, ``normalize`` mean
    and deviation per channel of its pixels (scaled to 0..1). Image models of torchvision and timm
    take pixels [b, 3, h, w] and return logits [b, classes]; models of transformers are called as
    their library says. Models that make masks answer as their library has it: torchvision's with
    a dictionary whose ``out`` is logits [b, classes, h, w], those of transformers with ``logits``
    that may be smaller than the images. Detectors take a list of pixels [3, h, w] in 0..1, which
    they normalize themselves, and answer with a dictionary for each: ``boxes``, ``scores`` and
    ``labels``, which count from 1. Of a regression the outputs are in the units of the
    targets, of several labels they are logits, each to be compared with 0. Neither the pretrained
    weights nor the network is needed.

    Raises:
        ModelError: when the file is missing, damaged, or not such a checkpoint.
    """
    where = open_device(device)
    try:
        tensors, header = checkpoint.read(Path(path))
    except FileNotFoundError as error:
        raise ModelError(f"no checkpoint {path}; give a trial's best.safetensors") from error
    except ValueError as error:
        raise ModelError(f"{error}; give the best.safetensors of another trial") from error
    if "card" not in header:
        raise ModelError(f"{path} is not a checkpoint of weights; give a trial's best.safetensors")
    card = header["card"]
    config = TrialConfig.model_validate(card["config"])
    # The random weights that the module begins with are none of the caller's numbers.
    with torch.random.fork_rng(devices=[]):
        module = _skeleton(config, card, tensors)
    module.load_state_dict(tensors)
    module.labels = tuple(card["labels"])  # type: ignore[assignment]
    mean, std = card["normalize"]
    module.normalize = (tuple(mean), tuple(std))  # type: ignore[assignment]
    stats = dict(card.get("stats") or {})
    module.stats = stats  # type: ignore[assignment]
    if "deviation" in stats:
        module.register_forward_hook(_in_the_users_units)
    if TASKS[config.task].boxes:
        from sft_tune.trial.detectors import set_normalization

        set_normalization(module, mean, std)
    return module.to(where).eval()


def _in_the_users_units(module: Any, inputs: Any, output: Any) -> Any:
    """Undo the standardization of the targets in the outputs of a regression."""
    mean, deviation = module.stats["mean"], module.stats["deviation"]
    if isinstance(output, Tensor):
        return output * deviation + mean
    output["logits"] = output["logits"] * deviation + mean
    return output


def fetch_checkpoint(url: str, cache: Path) -> Path:
    """Return a copy, below ``cache``, of the weights at ``url``; fetched once.

    Raises:
        ModelError: when they are missing, or cannot be fetched.
    """
    try:
        return copy_of(url, cache)
    except FileNotFoundError as error:
        raise ModelError(f"no checkpoint {url}; give a trial's best.safetensors") from error
    except OSError as error:
        raise ModelError(f"{error}; try again, or give a copy of it on this machine") from error


def _skeleton(
    config: TrialConfig, card: checkpoint.Header, tensors: Mapping[str, Tensor]
) -> nn.Module:
    """Return the module whose ``tensors`` a checkpoint holds, with random weights."""
    module = bare_module(config, card)
    if names := wrapped_layers(tensors):
        inject(module, config.model, names)
    return module


def bare_module(config: TrialConfig, card: checkpoint.Header) -> nn.Module:
    """Return the module that the checkpoint ``card`` describes, without LoRA, random weights."""
    if card["model_config"] is not None:
        from sft_tune.trial import models_transformers

        return models_transformers.skeleton(config.task, card["model_config"])
    if TASKS[config.task].boxes:
        from sft_tune.trial import models_detection

        count, size = len(card["labels"]), config.data.image_size
        return models_detection.skeleton(config.model, count, size)
    if TASKS[config.task].masks:
        from sft_tune.trial import models_segmentation

        return models_segmentation.skeleton(config.model, len(card["labels"]))
    from sft_tune.trial import models_timm, models_torchvision

    height, width = card["image_size"]
    library = models_timm if config.model.name.startswith("timm:") else models_torchvision
    side = height if height == width else None
    module: nn.Module = library.skeleton(config.model, len(card["labels"]), side)
    return module
