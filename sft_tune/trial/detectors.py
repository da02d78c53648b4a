"""Detectors of torchvision by name. It needs torch and torchvision, and nothing else.

An exported detector has a copy of this file beside its weights.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import nn

# Of an image that needs no filling up.
SIDE = 256
# Built here of torchvision's parts, as its own builders build them on ResNet-50.
OWN = re.compile(r"(fasterrcnn|fcos|retinanet)_((?:wide_)?resne[x]?t\d+\w*)_fpn")


def own_detector(name: str) -> tuple[str, str] | None:
    """Return family and backbone of a detector that torchvision has no builder for; else None."""
    from torchvision.models import detection, list_models

    found = OWN.fullmatch(name)
    if found is None or name in list_models(module=detection) or found[2] not in list_models():
        return None
    return found[1], found[2]


def build_detector(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Return the detector ``name`` with random weights.

    Args:
        name: of torchvision, or ``fcos``, ``retinanet`` or ``fasterrcnn`` with any ResNet as in
            ``fcos_resnet18_fpn``.
        arguments: of torchvision's builder: ``num_classes`` (the background is one of them), and
            perhaps ``min_size`` and ``max_size``.
    """
    from torchvision.models import detection, get_model
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    own = own_detector(name)
    if own is None:
        module: nn.Module = get_model(name, weights=None, weights_backbone=None, **arguments)
        return _settled(module)
    family, body = own
    fpn: dict[str, Any] = {"norm_layer": nn.BatchNorm2d, "trainable_layers": 5}
    if family != "fasterrcnn":
        fpn |= {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}
    backbone = resnet_fpn_backbone(backbone_name=body, weights=None, **fpn)
    kinds: dict[str, Any] = {
        "fasterrcnn": detection.FasterRCNN,
        "fcos": detection.FCOS,
        "retinanet": detection.RetinaNet,
    }
    module = kinds[family](backbone, **arguments)
    return _settled(module)


def _settled(module: Any) -> nn.Module:
    """Return ``module``, which no longer depends on its first batch, or on half precision."""
    if hasattr(module, "roi_heads"):
        _fix_scales(module)
    proposing = getattr(module, "rpn", module)
    proposing.anchor_generator.register_forward_pre_hook(_in_single_precision)
    proposing.head.register_forward_hook(_to_single_precision)
    if hasattr(module, "roi_heads"):
        module.roi_heads.box_predictor.register_forward_hook(_to_single_precision)
    made: nn.Module = module
    return made


def _in_single_precision(module: Any, given: Any) -> Any:
    """Let anchors be made in float32: bfloat16 cannot tell 1000 pixels from 1003."""
    images, maps = given
    return images, [one.new_empty(1, dtype=torch.float32).expand(one.shape) for one in maps]


def _to_single_precision(module: Any, given: Any, found: Any) -> Any:
    """Let boxes be made in float32: torchvision makes them in the precision of ``found``."""
    return _single(found)


def _single(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: _single(part) for name, part in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(_single(part) for part in found)
    return found.float()


def _fix_scales(module: Any) -> None:
    """Tell a Faster R-CNN how much smaller its feature maps are than the images.

    By itself it guesses that once, from the first batch that it sees, and small images, filled up
    to a multiple of 32, mislead it: the same weights would then answer otherwise elsewhere.
    """
    from torchvision.ops.poolers import initLevelMapper

    pool = module.roi_heads.box_roi_pool
    with torch.no_grad():
        maps = module.backbone.eval()(torch.zeros(1, 3, SIDE, SIDE))
    module.backbone.train()
    scales = [maps[name].shape[-1] / SIDE for name in pool.featmap_names if name in maps]
    first, last = (-int(math.log2(scale)) for scale in (scales[0], scales[-1]))
    usual = {"canonical_scale": pool.canonical_scale, "canonical_level": pool.canonical_level}
    pool.scales, pool.map_levels = scales, initLevelMapper(first, last, **usual)


def freeze_statistics(module: nn.Module, epsilon: float | None) -> None:
    """Replace the batch norms of the backbone by ones whose statistics and weights are fixed."""
    from torchvision.ops import FrozenBatchNorm2d

    for name, part in list(module.named_modules()):
        if name.startswith("backbone.") and isinstance(part, nn.BatchNorm2d):
            fixed = FrozenBatchNorm2d(part.num_features, part.eps if epsilon is None else epsilon)
            module.set_submodule(name, fixed)


def set_normalization(module: Any, mean: list[float], std: list[float]) -> None:
    """Let a detector normalize its pixels with ``mean`` and ``std``: it is given 0..1."""
    module.transform.image_mean, module.transform.image_std = list(mean), list(std)
