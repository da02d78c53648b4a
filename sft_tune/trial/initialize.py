"""How a fine-tuned model begins: its new head, and blocks that forget their pretraining."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sft_tune.errors import ModelError
from sft_tune.spec.model import ModelSpec
from sft_tune.trial.heads import OutputLayer
from sft_tune.trial.models import BuiltModel

# As BERT's layers begin (Devlin et al. 2019).
DEVIATION = 0.02


def initialize(
    model: BuiltModel, spec: ModelSpec, seed: int, fresh: Callable[[ModelSpec], BuiltModel]
) -> None:
    """Draw the output layer and the last blocks of ``model`` anew, as ``spec`` says.

    Args:
        model: it is changed.
        spec: its section.
        seed: of what is drawn.
        fresh: builds the model of a section; blocks are taken from one with random weights, so
            that they begin as their library has it.

    Raises:
        ModelError: when more blocks are to be drawn anew than there are.
    """
    blocks = model.blocks
    if spec.reinit_blocks > blocks.count:
        raise ModelError(
            f"model.reinit_blocks: the model has {blocks.count} blocks; lower it "
            f"(got {spec.reinit_blocks})"
        )
    if spec.reinit_blocks:
        source = fresh(spec.model_copy(update={"weights": "none", "reinit_blocks": 0})).module
        for names in blocks.names[-spec.reinit_blocks :]:
            for name in names:
                state = source.get_submodule(name).state_dict()
                model.module.get_submodule(name).load_state_dict(state)
    if spec.head_init != "default":
        torch.manual_seed(seed)
        INITIALIZERS[spec.head_init](_output_layer(model))


def _zero(layer: OutputLayer) -> None:
    nn.init.zeros_(layer.weight)
    _zero_bias(layer)


def _normal(layer: OutputLayer) -> None:
    nn.init.normal_(layer.weight, std=DEVIATION)
    _zero_bias(layer)


def _xavier(layer: OutputLayer) -> None:
    nn.init.xavier_uniform_(layer.weight)
    _zero_bias(layer)


INITIALIZERS: dict[str, Callable[[OutputLayer], None]] = {
    "zero": _zero,
    "normal": _normal,
    "xavier": _xavier,
}


def _zero_bias(layer: OutputLayer) -> None:
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _output_layer(model: BuiltModel) -> OutputLayer:
    """Return the last layer of the head; hidden layers before it keep what they have."""
    for name, part in reversed(list(model.module.named_modules())):
        if isinstance(part, OutputLayer) and model.in_head(name):
            return part
    raise ModelError("model.head_init: the head has no linear layer; leave it out")
