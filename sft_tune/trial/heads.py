"""The head of a classifier: found by rule, replaced to fit the labels, with dropout before it."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sft_tune.errors import ModelError

OutputLayer = nn.Linear | nn.Conv2d


def find_output_layer(module: nn.Module) -> str:
    """Return the name of the output layer: the last linear or convolutional one registered.

    This holds for every classification model of torchvision; a test goes over all of them.

    Raises:
        ModelError: when ``module`` has no such layer.
    """
    names: list[str] = [n for n, part in module.named_modules() if isinstance(part, OutputLayer)]
    if not names:
        raise ModelError(f"{type(module).__name__} has no linear layer to replace as its head")
    return names[-1]


def find_output_layers(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the output layers: those that a model of timm says, else the last one.

    Some of timm's have two, whose answers are averaged.

    Raises:
        ModelError: when ``module`` has no such layer.
    """
    if not hasattr(module, "get_classifier"):
        return (find_output_layer(module),)
    said = module.get_classifier()  # type: ignore[operator]
    layers = said if isinstance(said, tuple) else (said,)
    return tuple(n for n, part in module.named_modules() if any(part is one for one in layers))


def replace_head(module: nn.Module, classes: int, dropout: float | None) -> tuple[str, ...]:
    """Give ``module`` a new output layer of ``classes`` outputs, drawn from the global generator.

    With ``dropout`` the model's own dropout before the head gets this probability; a model
    without one gets a dropout layer there.

    Returns:
        The names of the modules that are the head: its dropout if it has one, and the layer.

    Raises:
        ModelError: when ``module`` has no layer to replace.
    """
    name = find_output_layer(module)
    own = dropouts_before(module, name)
    layer: nn.Module = like(module.get_submodule(name), classes)
    if dropout is not None:
        for other in own:
            module.get_submodule(other).p = dropout  # type: ignore[assignment]
        if not own:
            layer = nn.Sequential(OrderedDict(dropout=nn.Dropout(dropout), output=layer))
    module.set_submodule(name, layer)
    return (*own, name)


def in_head(name: str, head: tuple[str, ...]) -> bool:
    """Tell whether the parameter or module ``name`` is one of the modules ``head``, or in one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in head)


def normalizes_batches(module: nn.Module) -> bool:
    """Tell whether an example's output depends on the others of its batch, as ``module`` is set."""
    return any(isinstance(part, _BatchNorm) and part.training for part in module.modules())


def like(old: nn.Module, classes: int) -> OutputLayer:
    """Return a new layer as ``old`` but with ``classes`` outputs."""
    if isinstance(old, nn.Conv2d):
        return nn.Conv2d(
            old.in_channels,
            classes,
            old.kernel_size,  # type: ignore[arg-type]
            stride=old.stride,  # type: ignore[arg-type]
            padding=old.padding,  # type: ignore[arg-type]
            bias=old.bias is not None,
        )
    if isinstance(old, nn.Linear):
        return nn.Linear(old.in_features, classes, bias=old.bias is not None)
    raise ModelError(f"the head is a {type(old).__name__}, which cannot be replaced")


def dropouts_before(module: nn.Module, name: str) -> tuple[str, ...]:
    """Return the dropout layers registered between the layer ``name`` and the one before it."""
    found: list[str] = []
    for other, part in module.named_modules():
        if other == name:
            break
        if isinstance(part, nn.Dropout):
            found.append(other)
        elif any(True for _ in part.parameters(recurse=False)):
            found.clear()
    return tuple(found)
