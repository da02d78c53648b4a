"""Image models of timm, an extra: ``timm:NAME``, or ``timm:NAME.TAG`` for other weights."""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sft_tune.errors import MissingModelError, ModelError
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.heads import dropouts_before, find_output_layers
from sft_tune.trial.models import BuiltModel, Normalize, did_you_mean, three
from sft_tune.trial.weights import Stamp, file_stamp, is_path, load_backbone, read_state

KEPT_MODELS = 2


# Settings of a model -> the arguments that timm's builders have for them.
ARGUMENTS = {"dropout": "drop_rate", "stochastic_depth": "drop_path_rate"}


def build(model: ModelSpec, classes: int, *, image_size: int | None, seed: int) -> BuiltModel:
    """Return the image model of ``model`` with a new head of ``classes`` outputs.

    Raises:
        ModelError: for a name or weights that are unknown, cannot be had, or do not fit, or where
            timm is not installed.
    """
    weights = resolve_weights(model)
    state: dict[str, Tensor] | None = None
    if weights != "none":
        stamp = file_stamp(Path(weights)) if is_path(weights) else None
        state = _pretrained(_name(model), weights, stamp, image_size)
    torch.manual_seed(seed)
    module = _made(model, classes, image_size)
    outputs = find_output_layers(module)
    head = (*dropouts_before(module, outputs[0]), *outputs)
    if state is not None:
        misfit = load_backbone(module, state, head)
        if misfit:
            raise misfit.error(weights, model.name)
    return BuiltModel(module, head, normalization(model))


def skeleton(model: ModelSpec, classes: int, image_size: int | None) -> nn.Module:
    """Return the module that `build` makes of ``model``, without its weights."""
    return _made(model, classes, image_size)


def library_arguments(model: ModelSpec, image_size: int | None) -> dict[str, Any]:
    """Return what `timm.create_model` is called with, besides the name and the classes.

    Networks whose layers depend on the size of their images are told it.
    """
    config = _config(model)
    own = config.input_size[-1]
    fixed = config.fixed_input_size and image_size not in (None, own)
    return {"img_size": image_size} if fixed else {}


def normalization(model: ModelSpec) -> Normalize:
    """Return mean and deviation of the model's data configuration, with any weights."""
    config = _config(model)
    return three(config.mean), three(config.std)


def side(model: ModelSpec) -> int:
    """Return the side in pixels of the images that ``model`` was made for."""
    return int(_config(model).input_size[-1])


def resolve_weights(model: ModelSpec) -> str:
    """Return ``none``, a path, or the tag of timm's weights (``DEFAULT`` resolved).

    Raises:
        ModelError: for a tag that timm does not have for the model.
    """
    if model.weights == "none" or is_path(model.weights):
        return model.weights
    check_name(_name(model))
    base, _, tag = _name(model).partition(".")
    known = [name.partition(".")[2] for name in _timm().list_models(f"{base}.*", pretrained=True)]
    if model.weights == "DEFAULT" and known:
        return tag or str(_config(model).tag)
    if model.weights not in known:
        remedy = f"it has {', '.join(known)}, or give" if known else "give"
        raise ModelError(
            f"model.weights: {model.name} has no weights {model.weights!r}"
            f"{did_you_mean(model.weights, known)}; {remedy} a path or none"
        )
    return model.weights


def check_name(name: str) -> None:
    """Raise ModelError unless timm has a model ``name``, and the weights that its tag says."""
    timm = _timm()
    base, dot, _ = name.partition(".")
    if not timm.is_model(base):
        names = timm.list_models()
        raise ModelError(
            f"model.name: timm has no model {base!r}{did_you_mean(base, names)}; "
            f"it has {', '.join(names[:3])}, ... ({len(names)})"
        )
    tagged = timm.list_models(f"{base}.*", pretrained=True)
    if dot and name not in tagged:
        known = ", ".join(tagged) or "none"
        raise ModelError(
            f"model.name: timm has no weights {name!r}{did_you_mean(name, tagged)}; "
            f"those of {base}: {known}"
        )


@lru_cache(maxsize=KEPT_MODELS)
def _pretrained(
    name: str, weights: str, stamp: Stamp | None, image_size: int | None
) -> dict[str, Tensor]:
    """Return the tensors of ``weights``, kept for later trials: copy them, do not change them.

    ``stamp`` is that of the file of weights, so that a changed file is read again.
    """
    model = ModelSpec(name=f"timm:{name}", weights="none")
    arguments = library_arguments(model, image_size)
    if stamp is None:
        tagged = f"{name.partition('.')[0]}.{weights}"
        try:
            return dict(_timm().create_model(tagged, pretrained=True, **arguments).state_dict())
        # Of timm, the hub's client and its transport, which share no base class.
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            raise MissingModelError(
                f"model.weights: {tagged} of timm cannot be had: {first}; connect to the network, "
                "give the path of a state dict, or none"
            ) from error
    state = read_state(Path(weights))
    module = _made(model, 1, image_size)
    head = find_output_layers(module)
    if load_backbone(module, state, head):
        return _filtered(module, state)
    return state


def _filtered(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` as timm's own filter for the model makes it: other names, other sizes."""
    filters = importlib.import_module(type(module).__module__)
    rule = getattr(filters, "checkpoint_filter_fn", None)
    if rule is None:
        return state
    try:
        return dict(rule(dict(state), module))
    except (KeyError, ValueError, RuntimeError, AttributeError, IndexError):
        return state  # of another architecture, which is for `load_backbone` to say


def _made(model: ModelSpec, classes: int, image_size: int | None) -> nn.Module:
    """Return the model with random weights and a head of ``classes`` outputs."""
    arguments = library_arguments(model, image_size)
    for key, argument in ARGUMENTS.items():
        if (value := getattr(model, key)) is not None:
            arguments[argument] = value
    try:
        made: nn.Module = _timm().create_model(_name(model), num_classes=classes, **arguments)
    except TypeError as error:
        for key, argument in ARGUMENTS.items():
            if f"'{argument}'" in str(error):
                raise ModelError(
                    f"model.{key}: {model.name} has none to set; leave it out"
                ) from error
        raise
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ModelError(
            f"model.name: {model.name} cannot be built for images of {image_size} pixels: {error}; "
            f"set data.image_size to a size it takes ({side(model)})"
        ) from error
    return made


def _config(model: ModelSpec) -> Any:
    """Return timm's configuration of the weights of ``model``, its default ones without a tag."""
    name = _name(model)
    check_name(name)
    if "." not in name and model.weights not in ("DEFAULT", "none") and not is_path(model.weights):
        name = f"{name}.{model.weights}"
    return _timm().get_pretrained_cfg(name) or _timm().models.PretrainedCfg()


def _name(model: ModelSpec) -> str:
    return model.name.partition(":")[2]


def _timm() -> Any:
    """Return the library.

    Raises:
        ModelError: when it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            "model.name: timm:NAME needs timm: pip install 'sft_tune[timm]'"
        ) from error
    return timm
