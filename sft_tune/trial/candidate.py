"""The rung that is best on a part of the validation split, until it is measured on the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from sft_tune.trial.outcome import Evaluation
from sft_tune.trial.trainee import Trainee


@dataclass(frozen=True)
class Candidate:
    """A rung that may turn out to be the trial's best.

    Attributes:
        evaluation: its numbers, on the part.
        step: optimizer steps done.
        weights: the module's tensors, on the CPU, but for a backbone that stays as it is.
    """

    evaluation: Evaluation
    step: int
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, trainee: Trainee, evaluation: Evaluation, step: int) -> Self:
        """Copy the weights that ``trainee`` has now, after ``step`` steps."""
        weights = {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in trainee.model.module.state_dict().items()
            if not trainee.backbone_stays or trainee.model.in_head(name)
        }
        return cls(evaluation, step, weights)

    def header(self) -> dict[str, Any]:
        """Return all but the weights, as plain values."""
        return {"evaluation": self.evaluation.to_json(), "step": self.step}

    @classmethod
    def restored(cls, header: Mapping[str, Any], weights: dict[str, Tensor]) -> Self:
        """Undo `header`."""
        return cls(Evaluation.from_json(header["evaluation"]), header["step"], weights)

    @contextmanager
    def in_place(self, module: nn.Module) -> Iterator[None]:
        """Put its weights in the place of the module's own inside."""
        state: dict[str, Tensor] = module.state_dict()
        own = {name: state[name].clone() for name in self.weights}
        _copy(state, self.weights)
        try:
            yield
        finally:
            _copy(state, own)


@torch.no_grad()
def _copy(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        state[name].copy_(tensor)
