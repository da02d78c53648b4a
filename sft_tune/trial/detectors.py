"""Detectors of torchvision by name. It needs torch and torchvision, and nothing else.

An exported detector has a copy of this file beside its weights.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

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
        return module
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
    return module


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
