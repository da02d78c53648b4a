"""The heads of K trials as one: a chain of layers whose products are batched over the trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sft_tune.trial.models import BuiltModel

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Hardswish, nn.Sigmoid)
# The children of heads of transformers whose order of calls is in their own code; what is made of
# it here is compared with the module before it is believed.
CLASSIFICATION_HEAD = {"dense", "dropout", "out_proj"}
POOLER = {"dense", "activation"}

Masks = Callable[[int, Tensor], Tensor]
"""Dropout: of the number of the dropout layer and its input [k, b, d], its output."""


@dataclass(frozen=True)
class Layer:
    """One step of a head.

    Attributes:
        kind: linear, dropout, first (the first position of each example), norm, or apply.
        name: of the module.
        function: for apply.
        epsilon: for norm.
    """

    kind: str
    name: str = ""
    function: nn.Module | None = None
    epsilon: float = 0.0

    @property
    def signature(self) -> tuple[str, str, str, float]:
        """What heads have in common whose layers are the same."""
        kind = "" if self.function is None else str(self.function)
        return (self.kind, self.name, kind, self.epsilon)


def layers_of(model: BuiltModel) -> tuple[Layer, ...] | None:
    """Return the head of ``model``, which is used on features, as layers; None: it is none."""
    found: list[Layer] = []
    for name in model.chain:
        if not _add(model.module.get_submodule(name), name, found):
            return None
    return tuple(found)


def dropouts(model: BuiltModel, layers: Sequence[Layer]) -> list[float]:
    """Return the probabilities of the dropout layers, in order."""
    return [
        float(model.module.get_submodule(layer.name).p)  # type: ignore[arg-type]
        for layer in layers
        if layer.kind == "dropout"
    ]


def forward(
    layers: Sequence[Layer], weights: Mapping[str, Tensor], inputs: Tensor, masks: Masks
) -> Tensor:
    """Return the logits [k, b, classes] of k heads.

    Args:
        layers: of all of them.
        weights: parameters by name, [k, ...].
        inputs: of each, [k, b, d], or [k, b, positions, d].
        masks: does what dropout does.
    """
    dropped = 0
    for layer in layers:
        if layer.kind == "linear":
            # In this order the gradient of the weights is made as they lie: three times faster.
            inputs = torch.bmm(weights[f"{layer.name}.weight"], inputs.transpose(1, 2))
            inputs = inputs.transpose(1, 2)
            bias = weights.get(f"{layer.name}.bias")
            if bias is not None:
                inputs = inputs + bias[:, None, :]
        elif layer.kind == "dropout":
            inputs = masks(dropped, inputs)
            dropped += 1
        elif layer.kind == "first":
            inputs = inputs[:, :, 0]
        elif layer.kind == "norm":
            scale = weights[f"{layer.name}.weight"][:, None, :]
            shift = weights[f"{layer.name}.bias"][:, None, :]
            normal = functional.layer_norm(inputs, inputs.shape[-1:], eps=layer.epsilon)
            inputs = normal * scale + shift
        elif layer.function is not None:
            inputs = layer.function(inputs)
    return inputs


def _add(module: nn.Module, name: str, found: list[Layer]) -> bool:
    """Add the layers of ``module`` to ``found``; tell whether all of it is known."""
    if isinstance(module, nn.Linear):
        found.append(Layer("linear", name))
    elif isinstance(module, nn.Dropout):
        found.append(Layer("dropout", name))
    elif isinstance(module, ACTIVATIONS):
        found.append(Layer("apply", function=module))
    elif isinstance(module, nn.LayerNorm):
        if len(module.normalized_shape) > 1 or module.bias is None:
            return False
        found.append(Layer("norm", name, epsilon=module.eps))
    elif isinstance(module, nn.Sequential):
        return all(_add(part, f"{name}.{key}", found) for key, part in module.named_children())
    else:
        return isinstance(module, nn.Identity) or _add_known(module, name, found)
    return True


def _add_known(module: nn.Module, name: str, found: list[Layer]) -> bool:
    parts = dict(module.named_children())
    if parts.keys() == POOLER:
        found.append(Layer("first"))
        return all(_add(parts[key], f"{name}.{key}", found) for key in ("dense", "activation"))
    if parts.keys() == CLASSIFICATION_HEAD:
        found.append(Layer("first"))
        order = ("dropout", "dense", "", "dropout", "out_proj")
        tanh = nn.Tanh()
        return all(_add(parts[key] if key else tanh, f"{name}.{key}", found) for key in order)
    return False
