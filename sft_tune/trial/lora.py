"""LoRA through peft: the backbone stays, low-rank updates of its linear layers are trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sft_tune.errors import ModelError
from sft_tune.spec.study import ModelSpec
from sft_tune.trial.blocks import with_depths_of
from sft_tune.trial.heads import in_head
from sft_tune.trial.models import BuiltModel

ADAPTER = "default"
ALL_LINEAR = "all-linear"
# How many layers' names a message shows.
SHOWN = 8


def add_lora(model: BuiltModel, spec: ModelSpec, seed: int) -> None:
    """Add the updates that ``spec`` asks for to ``model``; only they and the head are trained.

    They begin as nothing: one factor is random, drawn with ``seed``, the other zero (Hu et al.
    2022, section 4.1).

    Raises:
        ModelError: when peft is not installed, or no layer has the names asked for.
    """
    blocks = model.blocks
    torch.manual_seed(seed)
    inject(model.module, spec, targets(model.module, spec, model.head))
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_(".lora_" in name or model.in_head(name))
    model.blocks = with_depths_of(blocks, model.module)


def targets(module: nn.Module, spec: ModelSpec, head: tuple[str, ...]) -> list[str]:
    """Return the full names of the layers that get updates: linear ones outside of the head.

    Raises:
        ModelError: when there is none of the names that ``spec`` gives.
    """
    from transformers.pytorch_utils import Conv1D

    # A language model's last layer is often its embedding, too: an update would part them.
    last = getattr(module, "get_output_embeddings", lambda: None)()
    linear = [
        name
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear | Conv1D) and not in_head(name, head) and part is not last
    ]
    wanted = [word.strip() for word in spec.lora_targets.split(",")]
    if wanted == [ALL_LINEAR]:
        return linear
    found = {word: [n for n in linear if f".{n}".endswith(f".{word}")] for word in wanted}
    missing = [word for word, names in found.items() if not names]
    if missing:
        known = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
        raise ModelError(
            f"model.lora_targets: {spec.name} has no linear layer {missing[0]!r}; it has "
            f"{', '.join(known[:SHOWN])}"
        )
    return [name for name in linear if any(name in names for names in found.values())]


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

    Merged they have the names and shapes of the model without LoRA.
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
        own["weight"] = own["weight"] + layer.get_delta_weight(ADAPTER).detach()
        merged |= {f"{name}.{key}": tensor for key, tensor in own.items()}
    return {key: merged[key] for key in sorted(merged)}
