"""LoRA through peft: the backbone stays, low-rank updates of its layers are trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sft_tune.errors import ModelError
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.blocks import with_depths_of
from sft_tune.trial.heads import in_head
from sft_tune.trial.models import BuiltModel

ADAPTER = "default"
ALL_LINEAR = "all-linear"
# How many layers' names a message shows.
SHOWN = 8


def add_lora(
    model: BuiltModel, spec: ModelSpec, seed: int, size: tuple[int, int] | None = None
) -> None:
    """Add the updates that ``spec`` asks for to ``model``; only they and the head are trained.

    They begin as nothing: one factor is random, drawn with ``seed``, the other zero (Hu et al.
    2022, section 4.1).

    Args:
        model: it is changed.
        spec: its section.
        seed: of the random factors.
        size: height and width of the images that it gets; None where it reads no images.

    Raises:
        ModelError: when peft is not installed, or no layer has the names asked for.
    """
    blocks = model.blocks
    torch.manual_seed(seed)
    layers = linear_layers(model) if model.config else image_layers(model, size or (224, 224))
    inject(model.module, spec, targets(layers, spec))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(".lora_" in name or model.in_head(name))
    model.blocks = with_depths_of(blocks, model.module)


def linear_layers(model: BuiltModel) -> dict[str, nn.Module]:
    """Return the linear layers of a model of transformers outside of its head, by name."""
    from transformers.pytorch_utils import Conv1D

    # A language model's last layer is often its embedding, too: an update would part them.
    last = getattr(model.module, "get_output_embeddings", lambda: None)()
    return {
        name: part
        for name, part in model.module.named_modules()
        if isinstance(part, nn.Linear | Conv1D)
        and not in_head(name, model.head)
        and part is not last
    }


def image_layers(model: BuiltModel, size: tuple[int, int]) -> dict[str, nn.Module]:
    """Return the layers of a network of torchvision or timm that can have updates, by name.

    They are its linear layers and its convolutions over all channels at once, without dilation,
    which are what peft has the update of. One that is not called but whose weights its module
    takes itself (within `nn.MultiheadAttention`, say) would be trained in vain: a pass over a
    black image tells.
    """
    found = {
        name: part
        for name, part in model.module.named_modules()
        if isinstance(part, nn.Linear) or (type(part) is nn.Conv2d and _is_plain(part))
        if not in_head(name, model.head)
    }
    called: set[str] = set()
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: called.add(name))
        for name, part in found.items()
    ]
    model.module.eval()
    try:
        with torch.inference_mode():
            model.logits({"pixel_values": torch.zeros(1, 3, *size)})
    finally:
        for handle in handles:
            handle.remove()
    return {name: part for name, part in found.items() if name in called}


def _is_plain(layer: nn.Conv2d) -> bool:
    return layer.groups == 1 and layer.dilation == (1, 1) and layer.padding_mode == "zeros"


def targets(layers: Mapping[str, nn.Module], spec: ModelSpec) -> list[str]:
    """Return the names of those of ``layers`` that get updates.

    All linear ones; where convolutions hold most of the weights, those too.

    Raises:
        ModelError: when there is none, or none of the names that ``spec`` gives.
    """
    if not layers:
        raise ModelError(f"model.lora_rank: {spec.name} has no layer for updates; leave it out")
    wanted = [word.strip() for word in spec.lora_targets.split(",")]
    if wanted == [ALL_LINEAR]:
        linear = [name for name, part in layers.items() if not isinstance(part, nn.Conv2d)]
        weights = {name: sum(p.numel() for p in part.parameters()) for name, part in layers.items()}
        mostly = 2 * sum(weights[name] for name in linear) >= sum(weights.values())
        return linear if mostly else list(layers)
    found = {word: [n for n in layers if f".{n}".endswith(f".{word}")] for word in wanted}
    missing = [word for word, names in found.items() if not names]
    if missing:
        known = list(dict.fromkeys(name.rpartition(".")[2] for name in layers))
        raise ModelError(
            f"model.lora_targets: {spec.name} has no layer {missing[0]!r}; it has "
            f"{', '.join(known[:SHOWN])}"
        )
    return [name for name in layers if any(name in names for names in found.values())]


def inject(module: nn.Module, spec: ModelSpec, names: list[str]) -> None:
    """Wrap the layers ``names`` of ``module``.

    Raises:
        ModelError: when peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError("model.lora_rank needs peft: pip install 'sft_tune[lora]'") from error

    rank = spec.lora_rank or 1
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if spec.lora_alpha is None else spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=names,
    )
    with warnings.catch_warnings():
        # That GPT-2's layers have their matrices transposed, which peft then minds.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        inject_adapter_in_model(config, module, adapter_name=ADAPTER)


def wrapped_layers(state: Iterable[str]) -> list[str]:
    """Return the layers that have updates in a checkpoint with the tensors ``state``."""
    parts = (key.partition(".lora_A.") for key in state)
    return sorted({name for name, found, _ in parts if found})


def exported(module: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
    """Return the weights of ``module`` as a checkpoint keeps them: updates merged if so asked.

    Merged they have the names and shapes of the model without LoRA, and those that are sums are on
    the CPU: the device may have no room for all of them beside the model.
    """
    state: dict[str, Tensor] = module.state_dict()
    if spec.lora_rank is None or not spec.lora_merge:
        return state
    from peft.tuners.lora import LoraLayer

    layers: dict[str, Any] = {
        name: part for name, part in module.named_modules() if isinstance(part, LoraLayer)
    }
    merged = {
        key: t for key, t in state.items() if not key.startswith(tuple(f"{n}." for n in layers))
    }
    for name, layer in layers.items():
        own = layer.get_base_layer().state_dict()
        own["weight"] = (own["weight"] + layer.get_delta_weight(ADAPTER).detach()).cpu()
        merged |= {f"{name}.{key}": tensor for key, tensor in own.items()}
    return {key: merged[key] for key in sorted(merged)}
