"""Image models: every classifier of torchvision, and the convolutional network of this package."""

from __future__ import annotations

import copy
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from sft_tune.errors import MissingModelError, ModelError
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.convnet import ConvNet
from sft_tune.trial.heads import find_output_layer, replace_head
from sft_tune.trial.models import HALF, BuiltModel, Normalize, did_you_mean, three
from sft_tune.trial.weights import Stamp, file_stamp, is_path, load_backbone, read_state

# Their second outputs help only training from scratch; their weights expect pixels normalized
# with 0.5 and convert those of the other models themselves (`transform_input`).
WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
AUXILIARY = ("aux", "AuxLogits")
# Networks whose layers depend on the size of their images, and the argument that says it.
SIZE_ARGUMENT = {"vit": "image_size", "maxvit": "input_size"}
KEPT_MODELS = 2


def build(model: ModelSpec, classes: int, *, image_size: int | None, seed: int) -> BuiltModel:
    """Return the image model of ``model`` with a new head of ``classes`` outputs.

    Raises:
        ModelError: for a name or weights that are unknown, cannot be had, or do not fit.
    """
    weights = resolve_weights(model)
    if weights == "none":
        torch.manual_seed(seed)
        module = _skeleton(model.name, image_size, named=False)
    else:
        stamp = file_stamp(Path(weights)) if is_path(weights) else None
        module = copy.deepcopy(_pretrained(model.name, weights, stamp, image_size))
        torch.manual_seed(seed)
    head = replace_head(module, classes, model.dropout)
    if model.stochastic_depth is not None:
        _set_stochastic_depth(module, model.stochastic_depth, model.name)
    return BuiltModel(module, head, normalization(model))


def skeleton(model: ModelSpec, classes: int, image_size: int | None) -> nn.Module:
    """Return the module that `build` makes of ``model``, without its weights."""
    weights = resolve_weights(model)
    named = weights != "none" and not is_path(weights)
    module = _skeleton(model.name, image_size, named)
    replace_head(module, classes, model.dropout)
    return module


def _set_stochastic_depth(module: nn.Module, most: float, name: str) -> None:
    """Let the branches of ``module`` be left out, the last with probability ``most``.

    The probability rises linearly from 0 (Huang et al. 2016, eq. 4).

    Raises:
        ModelError: when it has no such branches.
    """
    from torchvision.ops import StochasticDepth

    layers = [part for part in module.modules() if isinstance(part, StochasticDepth)]
    if not layers:
        raise ModelError(
            f"model.stochastic_depth: {name} has no stochastic depth to set; leave it out"
        )
    for i, layer in enumerate(layers):
        layer.p = most * i / max(len(layers) - 1, 1)


def normalization(model: ModelSpec) -> Normalize:
    """Return mean and deviation that the weights were made with; 0.5 where nothing says."""
    weights = resolve_weights(model)
    if weights == "none" or is_path(weights):
        return HALF, HALF
    transforms = _library_weights(model.name)[weights].transforms()
    return three(transforms.mean), three(transforms.std)


def resolve_weights(model: ModelSpec) -> str:
    """Return ``none``, a path, or the library's name of the weights (``DEFAULT`` resolved).

    Raises:
        ModelError: for a name that the library does not know.
    """
    if model.weights == "none" or is_path(model.weights):
        return model.weights
    if model.name.startswith("builtin:"):
        raise ModelError(
            f"model.weights: {model.name} has no weights {model.weights}; "
            "give the path of a .safetensors file, or none"
        )
    known = _library_weights(model.name)
    names = list(known.__members__)
    if model.weights not in names:
        raise ModelError(
            f"model.weights: {model.name} has no weights {model.weights!r}"
            f"{did_you_mean(model.weights, names)}; it has {', '.join(names)}, "
            "or give a path or none"
        )
    name: str = known[model.weights].name
    return name


@lru_cache(maxsize=KEPT_MODELS)
def _pretrained(name: str, weights: str, stamp: Stamp | None, image_size: int | None) -> nn.Module:
    """Return the model with ``weights``, kept for later trials: copy it, do not change it.

    ``stamp`` is that of the file of weights, so that a changed file is read again.
    """
    module = _skeleton(name, image_size, named=stamp is None)
    state = read_state(Path(weights)) if stamp else _download(name, weights)
    if name.partition(":")[2] in WITH_AUXILIARY_HEADS:
        state = {k: v for k, v in state.items() if not k.startswith(AUXILIARY)}
    head = (find_output_layer(module),)
    misfit = load_backbone(module, _resized(module, state), head)
    if misfit:
        raise misfit.error(weights, name)
    return module


def _skeleton(full_name: str, image_size: int | None, named: bool) -> nn.Module:
    """Return the model with random weights and the library's head."""
    library, _, name = full_name.partition(":")
    if library == "builtin":
        if name != "convnet":
            raise ModelError(f"model.name: {full_name!r} is unknown; there is builtin:convnet")
        return ConvNet(2)
    import torchvision

    check_name(name)
    arguments = _arguments(name, image_size, named)
    try:
        module: nn.Module = torchvision.models.get_model(name, weights=None, **arguments)
    except (ValueError, AssertionError) as error:
        raise ModelError(
            f"model.name: {full_name} cannot be built for images of {image_size} pixels: {error}; "
            "set data.image_size to a size it takes (224)"
        ) from error
    return module


def library_arguments(model: ModelSpec, image_size: int | None) -> dict[str, Any]:
    """Return what the library's own builder of ``model`` was called with, besides its name."""
    library, _, name = model.name.partition(":")
    if library == "builtin":
        return {}
    weights = resolve_weights(model)
    return _arguments(name, image_size, weights != "none" and not is_path(weights))


def _arguments(name: str, image_size: int | None, named: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if name in WITH_AUXILIARY_HEADS:
        arguments = {"aux_logits": False, "init_weights": not named, "transform_input": named}
    key = SIZE_ARGUMENT.get(name.partition("_")[0])
    if key is not None and image_size is not None:
        arguments[key] = image_size if key == "image_size" else (image_size, image_size)
    return arguments


def check_name(name: str) -> None:
    """Raise ModelError unless torchvision has a classification model ``name``."""
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ModelError(
            f"model.name: torchvision has no classification model {name!r}"
            f"{did_you_mean(name, names)}; it has {', '.join(names[:3])}, ... ({len(names)})"
        )


def _library_weights(full_name: str) -> Any:
    """Return torchvision's enumeration of the weights of the model ``full_name``."""
    import torchvision

    name = full_name.partition(":")[2]
    check_name(name)
    return torchvision.models.get_model_weights(name)


def _download(full_name: str, weights: str) -> dict[str, Tensor]:
    """Return the library's ``weights`` from torch's cache of downloads, or the network."""
    entry = _library_weights(full_name)[weights]
    try:
        state: dict[str, Tensor] = entry.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (URLError, OSError, RuntimeError) as error:
        raise MissingModelError(
            f"model.weights: {weights} of {full_name} cannot be had from {entry.url}: {error}; "
            "connect to the network, give the path of a state dict, or none"
        ) from error
    return state


def _resized(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with the position embeddings of a vision transformer made to fit."""
    position = state.get("encoder.pos_embedding")
    if position is None or not hasattr(module, "patch_size"):
        return state
    wanted = module.state_dict()["encoder.pos_embedding"].shape
    # Of another width it is another architecture, which is for `load_backbone` to say.
    if position.shape == wanted or position.shape[-1] != wanted[-1]:
        return state
    from torchvision.models.vision_transformer import interpolate_embeddings

    resized: dict[str, Tensor] = interpolate_embeddings(module.image_size, module.patch_size, state)
    return resized
