"""Modules whose tensors are exchanged: for those of others, for shared ones, for rows of one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sft_tune.trial.models import BuiltModel
from sft_tune.trial.stack.shared import NotStackableError


class Replaced(nn.Module):
    """A model as a module whose tensors can be others."""

    def __init__(self, model: BuiltModel) -> None:
        """Wrap ``model``."""
        super().__init__()
        self._model = model
        self.module = model.module

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits of ``inputs``."""
        return self._model.logits(inputs)

    def called(self, tensors: Mapping[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        """Return the logits of ``inputs`` with ``tensors`` in place of those of their names."""
        named = {f"module.{name}": tensor for name, tensor in tensors.items()}
        found: Tensor = functional_call(self, named, (inputs,))
        return found


def same_tensors(model: BuiltModel) -> BuiltModel:
    """Return ``model`` with modules of its own, and the same tensors."""
    tensors = [*model.module.parameters(), *model.module.buffers()]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    return replace(model, module=copy.deepcopy(model.module, memo))


def trained_of(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of ``module`` that are trained, by name."""
    return ((name, part) for name, part in module.named_parameters() if part.requires_grad)


def take_fixed(module: nn.Module, template: nn.Module, changing: Sequence[str]) -> None:
    """Let ``module`` have the tensors of ``template`` that no trial changes.

    Raises:
        NotStackableError: when its own are others.
    """
    fixed, ours = (
        {
            **{name: part for name, part in one.named_parameters() if not part.requires_grad},
            **{name: part for name, part in one.named_buffers() if name not in changing},
        }
        for one in (module, template)
    )
    if fixed.keys() != ours.keys():
        raise NotStackableError("other weights of it are frozen than in the stack")
    for name, part in fixed.items():
        if part is ours[name]:
            continue
        if part.shape != ours[name].shape or not torch.equal(part, ours[name]):
            raise NotStackableError("its frozen weights are others than those of the stack")
        _put(module, name, ours[name])


def stacked(modules: Sequence[nn.Module], names: Sequence[str]) -> dict[str, Tensor]:
    """Return the buffers ``names`` of ``modules`` as one tensor each, of which they become rows."""
    found = {name: torch.stack([module.get_buffer(name) for module in modules]) for name in names}
    for name, rows in found.items():
        for k, module in enumerate(modules):
            _put(module, name, rows[k])
    return found


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, key = name.rpartition(".")
    part = module.get_submodule(owner)
    place: dict[str, Any] = part._parameters if key in part._parameters else part._buffers
    place[key] = tensor
