"""Detectors of torchvision, with output layers for the classes of the data."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor, nn

from sft_tune.errors import MissingModelError, ModelError
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.data.box_encoder import FIXED_SIDES, sides
from sft_tune.trial.detectors import build_detector, freeze_statistics, own_detector
from sft_tune.trial.models import HALF, BuiltModel, Normalize, three
from sft_tune.trial.weights import is_path, load_backbone, read_state

# They learn from masks or keypoints, which the data of the task has not.
OTHER_TASKS = ("maskrcnn", "keypointrcnn")
# Weights made with another small number under the root of batch norm.
WITHOUT_EPSILON = ("fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn")


class Weights(NamedTuple):
    """Pretrained weights: their tensors, and whether they are of a backbone alone."""

    state: dict[str, Tensor]
    backbone: bool
    normalize: Normalize | None


def build(model: ModelSpec, classes: int, *, image_size: int | None, seed: int) -> BuiltModel:
    """Return the detector of ``model`` for ``classes``, the background not counted.

    Its head, all that has random weights: with weights of a whole detector the layers whose
    size depends on the classes, else all but the backbone's body.

    Raises:
        ModelError: for a name or weights that are unknown, cannot be had, or do not fit.
    """
    _check_settings(model)
    torch.manual_seed(seed)
    module: Any = skeleton(model, classes, image_size)
    weights = None if model.weights == "none" else _weights(model)
    if weights is None or weights.backbone:
        head = _all_but_body(module) or _of_the_classes(model, classes)
        normalize = HALF, HALF
    else:
        head = _of_the_classes(model, classes)
        normalize = three(module.transform.image_mean), three(module.transform.image_std)
    if weights is not None:
        _load(module, weights, head, model)
        torch.manual_seed(seed)
        normalize = weights.normalize or normalize
    return BuiltModel(module, head, normalize)


def skeleton(model: ModelSpec, classes: int, image_size: int | None) -> nn.Module:
    """Return the module that `build` makes of ``model``, without its weights."""
    name = _known(model.name)
    module = build_detector(name, arguments(name, classes, image_size))
    if has_frozen_statistics(model):
        freeze_statistics(module, epsilon(model))
    return module


def arguments(name: str, classes: int, image_size: int | None) -> dict[str, Any]:
    """Return what the builder of the detector ``name`` is called with."""
    options: dict[str, Any] = {"num_classes": classes + 1}
    if name in FIXED_SIDES:
        if image_size not in (None, FIXED_SIDES[name]):
            raise ModelError(
                f"data.image_size: {name} takes images of {FIXED_SIDES[name]} pixels only; "
                f"leave it out (got {image_size})"
            )
    elif image_size is not None:
        options["min_size"], options["max_size"] = sides(f"torchvision:{name}", image_size)
    return options


def has_frozen_statistics(model: ModelSpec) -> bool:
    """Tell whether the batch norms of the backbone are fixed, as torchvision's pretrained have."""
    name = model.name.partition(":")[2]
    return model.weights != "none" and not name.endswith("_v2") and name not in FIXED_SIDES


def epsilon(model: ModelSpec) -> float | None:
    """Return the small number of frozen batch norms; None: torchvision's usual one."""
    coco = model.weights in ("DEFAULT", "COCO_V1")
    return 0.0 if coco and model.name.partition(":")[2] in WITHOUT_EPSILON else None


def check_name(name: str) -> None:
    """Raise ModelError unless torchvision has a detector ``name``."""
    _known(f"torchvision:{name}")


def _known(full_name: str) -> str:
    from torchvision.models import detection, list_models

    library, _, name = full_name.partition(":")
    names = list_models(module=detection)
    if name.startswith(OTHER_TASKS):
        raise ModelError(
            f"model.name: {name} learns from more than boxes (masks or keypoints); "
            "use fasterrcnn_resnet50_fpn_v2, which is the same without"
        )
    names = [one for one in names if not one.startswith(OTHER_TASKS)]
    if library == "torchvision" and (name in names or own_detector(name) is not None):
        return name
    close = difflib.get_close_matches(name, names, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    raise ModelError(
        f"model.name: torchvision has no detector {full_name!r}{guess}; it has "
        f"{', '.join(names)}, and fcos, retinanet and fasterrcnn of any ResNet "
        "(fcos_resnet18_fpn)"
    )


def _check_settings(model: ModelSpec) -> None:
    for key, usual in (("dropout", None), ("stochastic_depth", None), ("head_init", "default")):
        if getattr(model, key) != usual:
            raise ModelError(f"model.{key}: detectors have none to set; leave it out")


def _all_but_body(module: nn.Module) -> tuple[str, ...]:
    """Return the modules that a classifier has not; none where the body is no classifier's."""
    backbone = module.get_submodule("backbone")
    if not hasattr(backbone, "body"):
        return ()
    beside = [f"backbone.{name}" for name, _ in backbone.named_children() if name != "body"]
    others = [
        name for name, part in module.named_children() if any(True for _ in part.parameters())
    ]
    return (*beside, *(name for name in others if name != "backbone"))


def _of_the_classes(model: ModelSpec, classes: int) -> tuple[str, ...]:
    """Return the layers whose size depends on the number of classes."""
    name = _known(model.name)
    with torch.device("meta"):
        one, other = (
            dict(build_detector(name, {"num_classes": n + 1}).named_modules())
            for n in (classes, classes + 1)
        )
    return tuple(
        name
        for name, part in one.items()
        if [p.shape for p in part.parameters(recurse=False)]
        != [p.shape for p in other[name].parameters(recurse=False)]
    )


def _load(module: nn.Module, weights: Weights, head: tuple[str, ...], model: ModelSpec) -> None:
    if not weights.backbone:
        own = module.state_dict()
        # Counters of batch norms, which fixed ones have not.
        counters = [k for k in weights.state if k not in own and k.endswith("batches_tracked")]
        state = {k: v for k, v in weights.state.items() if k not in counters}
        misfit = load_backbone(module, state, head)
    elif not hasattr(module.backbone, "body"):
        raise ModelError(
            f"model.weights: {model.weights} holds no detector, and {model.name} cannot take a "
            "backbone alone; give weights of the detector, none, or a model with FPN"
        )
    else:
        body = module.get_submodule("backbone.body")
        wanted = body.state_dict()
        # MobileNet's layers are one level deeper in the classifier.
        state = {name.removeprefix("features."): v for name, v in weights.state.items()}
        misfit = load_backbone(body, {k: v for k, v in state.items() if k in wanted}, ())
    if misfit:
        raise misfit.error(model.weights, model.name)


def _weights(model: ModelSpec) -> Weights:
    """Return the pretrained weights that ``model`` names.

    A path may be of a detector or of its backbone, a classifier. ``DEFAULT`` and other names are
    the library's of the detector, else of its backbone.
    """
    name = _known(model.name)
    if is_path(model.weights):
        state = read_state(Path(model.weights))
        return Weights(state, not any(key.startswith("backbone.") for key in state), None)
    from torchvision.models import get_model_weights

    own = own_detector(name)
    body = own[1] if own else re.sub(r"^[a-z]+_|(_320)?_fpn(_v2)?$", "", name)
    known = {} if own else dict(get_model_weights(name).__members__)
    of_body = {} if name in FIXED_SIDES else dict(get_model_weights(body).__members__)
    entry = known.get(model.weights) or of_body.get(model.weights)
    if entry is None:
        raise ModelError(
            f"model.weights: {model.name} has no weights {model.weights!r}; it has "
            f"{', '.join(dict.fromkeys([*known, *of_body]))}, or give a path or none"
        )
    backbone = model.weights not in known
    steps = entry.transforms() if backbone else None
    normalize = None if steps is None else (three(steps.mean), three(steps.std))
    try:
        state = entry.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (URLError, OSError, RuntimeError) as error:
        raise MissingModelError(
            f"model.weights: {model.weights} of {model.name} cannot be had from {entry.url}: "
            f"{error}; connect to the network, give the path of a state dict, or none"
        ) from error
    return Weights(dict(state), backbone, normalize)
