"""Models of torchvision that make masks, with new output layers."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from sft_tune.errors import MissingModelError, ModelError
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.heads import like
from sft_tune.trial.models import HALF, BuiltModel, Normalize, three
from sft_tune.trial.weights import is_path, load_backbone, read_state

# Of the library's own classifiers; they help only training from scratch.
AUXILIARY = "aux_classifier."
# Output layers are those whose outputs are as many as the classes that a model is built for.
MARK = 21


def build(model: ModelSpec, classes: int, *, seed: int) -> BuiltModel:
    """Return the model of ``model`` with logits of ``classes`` for each pixel.

    Raises:
        ModelError: for a name or weights that are unknown, cannot be had, or do not fit.
    """
    torch.manual_seed(seed)
    module = _library_model(model.name)
    head = output_layers(module)
    if model.weights != "none":
        state = _state(model)
        state = {name: v for name, v in state.items() if not name.startswith(AUXILIARY)}
        if misfit := load_backbone(module, state, head):
            raise misfit.error(model.weights, model.name)
        torch.manual_seed(seed)
    _replace(module, head, classes, model)
    return BuiltModel(module, head, _normalization(model))


def skeleton(model: ModelSpec, classes: int) -> nn.Module:
    """Return the module that `build` makes of ``model``, without its weights."""
    module = _library_model(model.name)
    _replace(module, output_layers(module), classes, model)
    return module


def output_layers(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers that make the logits; LR-ASPP has two, whose sum they are."""
    return tuple(
        name
        for name, part in module.named_modules()
        if name.startswith("classifier.")
        and isinstance(part, nn.Conv2d)
        and part.out_channels == MARK
    )


def _replace(module: nn.Module, head: tuple[str, ...], classes: int, model: ModelSpec) -> None:
    for name in head:
        module.set_submodule(name, like(module.get_submodule(name), classes))
    if model.stochastic_depth is not None:
        raise ModelError(
            f"model.stochastic_depth: {model.name} has no stochastic depth to set; leave it out"
        )
    if model.dropout is None:
        return
    own = [part for part in module.modules() if isinstance(part, nn.Dropout)]
    for part in own:
        part.p = model.dropout
    if not own:
        raise ModelError(f"model.dropout: {model.name} has no dropout to set; leave it out")


def _library_model(full_name: str) -> nn.Module:
    from torchvision.models import get_model

    name = full_name.partition(":")[2]
    check_name(name)
    module: nn.Module = get_model(name, weights=None, **library_arguments(full_name, MARK))
    return module


def check_name(name: str) -> None:
    """Raise ModelError unless torchvision has a model ``name`` that makes masks."""
    from torchvision.models import list_models, segmentation

    names = list_models(module=segmentation)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        raise ModelError(
            f"model.name: torchvision has no model 'torchvision:{name}' that makes masks{guess}; "
            f"it has {', '.join(names)}"
        )


def library_arguments(full_name: str, classes: int) -> dict[str, Any]:
    """Return what the library's own builder of the model is called with, besides its name."""
    options: dict[str, Any] = {"weights_backbone": None, "num_classes": classes}
    if not full_name.partition(":")[2].startswith("lraspp"):
        options["aux_loss"] = False
    return options


def _library_weights(model: ModelSpec) -> Any:
    """Return the library's entry of the weights that ``model`` names; None for a path or none."""
    if model.weights == "none" or is_path(model.weights):
        return None
    from torchvision.models import get_model_weights

    known = get_model_weights(model.name.partition(":")[2])
    if model.weights not in known.__members__:
        raise ModelError(
            f"model.weights: {model.name} has no weights {model.weights!r}; it has "
            f"{', '.join(known.__members__)}, or give a path or none"
        )
    return known[model.weights]


def _state(model: ModelSpec) -> dict[str, Tensor]:
    entry = _library_weights(model)
    if entry is None:
        return read_state(Path(model.weights))
    try:
        state: dict[str, Tensor] = entry.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (URLError, OSError, RuntimeError) as error:
        raise MissingModelError(
            f"model.weights: {model.weights} of {model.name} cannot be had from {entry.url}: "
            f"{error}; connect to the network, give the path of a state dict, or none"
        ) from error
    return OrderedDict(state)


def _normalization(model: ModelSpec) -> Normalize:
    """Return mean and deviation that the weights were made with; 0.5 where nothing says."""
    entry = _library_weights(model)
    if entry is None:
        return HALF, HALF
    steps = entry.transforms()
    return three(steps.mean), three(steps.std)
